"""Certificates for a test: an authority of its own, and what it has signed. Made by the ``openssl`` command."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

_CONFIG = """\
[req]
distinguished_name = subject
prompt = no
[subject]
CN = made for a test
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
subjectAltName = {names}
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""


@dataclass(frozen=True, slots=True)
class Certified:
    """A server's certificate and key, and the certificate of the authority that signed it."""

    authority: Path
    certificate: Path
    key: Path


def certified(folder: Path, *addresses: str) -> Certified:
    """A server of these addresses, by an authority that nobody else knows."""
    folder.mkdir(exist_ok=True)
    config = folder / "openssl.cnf"
    config.write_text(_CONFIG.format(names=", ".join(f"IP:{address}" for address in addresses)))
    authority, authority_key = _made(folder, "authority")
    certificate, key = _made(folder, "server", "-CA", str(authority), "-CAkey", str(authority_key))
    return Certified(authority, certificate, key)


def _made(folder: Path, kind: str, *signing: str) -> tuple[Path, Path]:
    certificate, key = folder / f"{kind}.pem", folder / f"{kind}.key"
    command = ["openssl", "req", "-x509", "-config", str(folder / "openssl.cnf"), "-extensions", kind, *signing]
    command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc", "-days", "2"]
    subprocess.run([*command, "-out", str(certificate), "-keyout", str(key)], check=True, capture_output=True)
    return certificate, key

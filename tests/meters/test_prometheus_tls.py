"""The Prometheus meter against the real Prometheus behind TLS and a password."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from otel_llm_energy.meters import MeterError, PrometheusMeter
from tests.meters.exporters import exporter
from tests.support.backends import running_prometheus
from tests.support.tls import Certified, certified
from tests.support.waiting import until

PASSWORD = "pass word/ü"
PASSWORD_HASH = "$2b$04$dr0DIzw9.FFN0IPmpp80oON2QR8Rgm815dKT.Ht5AbF.pIcmy6pwW"  # bcrypt, as Prometheus wants it
ADDRESS = "127.0.0.2"  # not the loopback that is kept from proxies and the environment's certificates
CONFIG = """\
scrape_configs:
  - job_name: scaphandre
    scrape_interval: 1s
    static_configs: [{{targets: {targets}}}]
"""
WEB_CONFIG = """\
tls_server_config: {{cert_file: {certificate}, key_file: {key}}}
basic_auth_users: {{meter: {password_hash}}}
"""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certified:
    """Of the Prometheus."""
    return certified(tmp_path_factory.mktemp("certificates"), ADDRESS)


@pytest.fixture(scope="module")
def secured(certificates: Certified, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The Prometheus' address; it scrapes what a real Scaphandre once answered."""
    folder = tmp_path_factory.mktemp("secured")
    (folder / "web.yml").write_text(
        WEB_CONFIG.format(
            certificate=certificates.certificate, key=certificates.key, password_hash=json.dumps(PASSWORD_HASH)
        )
    )
    page = (Path(__file__).with_name("fixtures") / "two-sockets-0.txt").read_bytes()
    with exporter(page) as scaphandre:
        targets = json.dumps([urlsplit(scaphandre.url).netloc])
        (folder / "prometheus.yml").write_text(CONFIG.format(targets=targets))
        config, web_config = folder / "prometheus.yml", folder / "web.yml"
        with running_prometheus(config, folder, address=ADDRESS, web_config=web_config) as prometheus:
            yield prometheus.url


def with_password(url: str, password: str = PASSWORD) -> str:
    """The address with a user, as it stands in a URL."""
    return url.replace("https://", f"https://meter:{quote(password, safe='')}@")


def problem(url: str, ca_file: Path | None) -> MeterError:
    """What the meter says."""
    with pytest.raises(MeterError) as caught:
        PrometheusMeter(url, ca_file=None if ca_file is None else str(ca_file)).open()
    assert caught.value.__cause__ is caught.value.__context__ is None, "it would hold the request"
    assert PASSWORD not in str(caught.value)
    assert quote(PASSWORD, safe="") not in str(caught.value)
    return caught.value


@pytest.mark.e2e
def test_counters_are_read_when_the_authority_and_the_password_are_right(
    secured: str, certificates: Certified, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever other authorities the environment names; the password is in no line of the log."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificates.key))
    meter = PrometheusMeter(with_password(secured), ca_file=str(certificates.authority))

    def opens() -> bool:
        try:
            return bool(meter.open())
        except MeterError as error:
            assert error.reason in ("meter-no-data", "meter-http-error"), error  # it has just started
            return False

    until(opens)
    assert {reading.channel_id for reading in meter.read()} >= {"package-0", "package-1"}
    shown = f"{caplog.text}{meter!r}"
    assert PASSWORD not in shown
    assert quote(PASSWORD, safe="") not in shown


def test_the_meter_says_who_is_not_trusted_when_the_authority_is_unknown(secured: str, tmp_path: Path) -> None:
    """No authority named, or another one: the same reason, and the setting that mends it."""
    for ca_file in (None, certified(tmp_path / "other", ADDRESS).authority):
        error = problem(with_password(secured), ca_file)
        assert error.reason == "meter-tls"
        assert "ca_file=" in str(error)
        assert "certificate" in str(error)


def test_the_meter_says_so_when_the_certificate_is_another_hosts(
    certificates: Certified, secured: str, tmp_path: Path
) -> None:
    """Signed by the right authority, for an address that is not the one that was asked."""
    (tmp_path / "prometheus.yml").write_text("scrape_configs: []\n")
    (tmp_path / "web.yml").write_text(
        f"tls_server_config: {{cert_file: {certificates.certificate}, key_file: {certificates.key}}}\n"
    )
    config, web_config = tmp_path / "prometheus.yml", tmp_path / "web.yml"
    with running_prometheus(config, tmp_path, address="127.0.0.3", web_config=web_config) as other:
        error = problem(other.url, certificates.authority)
    assert error.reason == "meter-tls"
    assert "127.0.0.3" in str(error)


def test_the_meter_says_so_when_the_password_is_wrong_or_missing(secured: str, certificates: Certified) -> None:
    """401, and what to check."""
    for url in (secured, with_password(secured, "guessed")):
        error = problem(url, certificates.authority)
        assert error.reason == "meter-http-error"
        assert "check the credentials" in str(error)


def test_the_meter_says_so_when_the_prometheus_speaks_no_tls(tmp_path: Path) -> None:
    """https was written for http."""
    (tmp_path / "prometheus.yml").write_text("scrape_configs: []\n")
    with running_prometheus(tmp_path / "prometheus.yml", tmp_path) as plain:
        assert problem(plain.url.replace("http://", "https://"), None).reason == "meter-tls"


def test_an_authority_that_is_not_there_is_refused_at_once() -> None:
    """By a line that names option and value."""
    with pytest.raises(ValueError, match=r"ca_file='/nowhere/ca.pem'"):
        PrometheusMeter("https://prometheus:9090", ca_file="/nowhere/ca.pem")

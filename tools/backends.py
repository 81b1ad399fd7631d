"""The real programs that tests talk to, fetched or built once into the cache folder, each named by its version.

``python -m tools.backends`` gets those that are missing, one after the other, and prints where they are; with names
only these. A program that the machine already has is used instead where its variable (``JAEGER_BIN``, ``TEMPO_BIN``...)
names it. Nothing here needs root, and no host name is written down: packages come from the machine's own apt sources,
modules through its own Go proxy.

A new back end is one function that fills a folder and one line in ``BACKENDS``.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from otel_llm_energy.cli.model import cache_folder

_HEARTBEAT_SECONDS: Final = 15.0
_GO_OLDEST: Final = (1, 21)  # the first that fetches by itself the newer Go which a module asks for
_SHIM_SOURCE: Final = Path(__file__).with_name("no_proc_modules.c")
_SHIM: Final = "no_proc_modules.so"
_COLLECTOR_MANIFEST: Final = Path(__file__).with_name("otelcol.yaml")
_JOBS: Final = min(2, os.cpu_count() or 1)  # a compiler takes up to 1 GB each


class BackendError(Exception):
    """A back end cannot be had on this machine: what is missing and what to do."""


@dataclass(frozen=True, slots=True)
class Backend:
    """One program and how to get it.

    Attributes:
        name: of the program, and of its file in the folder that ``fill`` fills.
        version: part of the folder's name, so that a new version is built beside the old.
        variable: environment variable that names a binary to use instead.
        expected: what getting it costs, in words.
        fill: puts the program into an empty folder; raises `BackendError`.
    """

    name: str
    version: str
    variable: str
    expected: str
    fill: Callable[[Path], None]

    @property
    def folder(self) -> Path:
        """Where the program lies once it was got."""
        return cache_folder() / f"{self.name}-{self.version}"

    def find(self) -> Path | None:
        """The program, if the machine or the cache has it. Raises `BackendError` if the variable names nothing."""
        named = os.environ.get(self.variable)
        if named:
            return _executable_file(Path(named), self.variable)
        cached = self.folder / self.name
        return cached if cached.is_file() else None


def binary(name: str) -> Path:
    """Path of a back end that was got before. Raises `BackendError` saying how to get it."""
    backend = BACKENDS[name]
    found = backend.find()
    if found is None:
        raise BackendError(f"{name} {backend.version} is not there. Get it with: python -m tools.backends {name}")
    return found


def promtool() -> Path:
    """Prometheus's checker of configurations, which comes with it. Raises `BackendError` if it does not lie there."""
    program = binary("prometheus").with_name("promtool")
    if not program.is_file():
        raise BackendError(f"{program} is not there: promtool is to lie beside the Prometheus that is used.")
    return program


def obtain(name: str) -> Path:
    """Path of a back end, which is fetched or built first if it is missing. Raises `BackendError`."""
    backend = BACKENDS[name]
    found = backend.find()
    if found is not None:
        return found
    with _locked(name):
        if backend.find() is None:
            _get(backend)
    return binary(name)


def scaphandre_environment() -> dict[str, str]:
    """Environment that Scaphandre needs here: a preloaded shim on kernels without ``/proc/modules``, else nothing."""
    if Path("/proc/modules").exists():
        return {}
    shim = cache_folder() / _SHIM
    if not shim.is_file():
        with _locked(_SHIM):
            _compile_shim(shim)
    return {"LD_PRELOAD": str(shim)}


def _compile_shim(shim: Path) -> None:
    partial = shim.with_suffix(".partial")
    command = [_tool("cc", "gcc"), "-shared", "-fPIC", "-O2", "-o", str(partial), str(_SHIM_SOURCE), "-ldl"]
    _run(command, cwd=shim.parent)
    partial.replace(shim)


def _executable_file(path: Path, variable: str) -> Path:
    if not os.access(path, os.X_OK) or not path.is_file():
        raise BackendError(f"{variable}={path}: no executable file there.")
    return path.absolute()


def _get(backend: Backend) -> None:
    """Fill a staging folder and give it its name only once it is whole."""
    print(f"{backend.name} {backend.version}: getting it ({backend.expected})", flush=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f".{backend.name}-", dir=cache_folder()) as staging:
        folder = Path(staging, "whole")
        folder.mkdir()
        try:
            backend.fill(folder)
        except BackendError as err:
            own = f"Or name a program that you have: {backend.variable}=/path/to/{backend.name}"
            raise BackendError(f"{backend.name} {backend.version}: {err}\n{own}") from err
        folder.replace(backend.folder)
    print(f"{backend.name} {backend.version}: {time.monotonic() - started:.0f} s", flush=True)


@contextmanager
def _locked(name: str) -> Iterator[None]:
    """One process at a time gets ``name``; the others wait and find it there."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    with (cache_folder() / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# ------------------------------------------------------------------------------------------------ packages


def _fill_scaphandre(folder: Path) -> None:
    """Unpack Scaphandre's package."""
    _unpack("scaphandre", folder)


def _fill_prometheus(folder: Path) -> None:
    """Unpack Prometheus and promtool, which some distributions keep in a package of its own."""
    _unpack("prometheus", folder)
    if not (folder / "promtool").is_file():
        _unpack("promtool", folder)


def _unpack(package: str, folder: Path) -> None:
    """Put the programs of a package into ``folder``: Debian trixie's on any Debian, the machine's own on its kin."""
    work = folder.with_name("apt")
    options = _private_apt(work) if _distribution() == "debian" else []
    files = work / package
    files.mkdir(parents=True)
    try:
        if options:
            _run([_tool("apt-get"), *options, "update"], cwd=work)
        _run([_tool("apt-get"), *options, "download", package], cwd=files)
    except BackendError as err:
        raise BackendError(f"{err}\nNo package {package} for this system.") from err
    (archive,) = files.glob(f"{package}_*.deb")
    _run([_tool("dpkg-deb"), "--extract", str(archive), str(files)], cwd=work)
    for program in (files / "usr/bin").iterdir():
        shutil.copy2(program, folder)


def _private_apt(work: Path) -> list[str]:
    """Options under which apt-get sees Debian trixie from the machine's own mirror, and writes only below ``work``."""
    for needed in ("lists/partial", "cache/archives/partial"):
        (work / needed).mkdir(parents=True, exist_ok=True)
    source = work / "trixie.list"
    source.write_text(f"deb [signed-by={_debian_keyring()}] {_debian_mirror()} trixie main\n")
    (work / "status").touch()
    settings = {
        "Dir::Etc::sourcelist": source,
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": work / "lists",
        "Dir::State::status": work / "status",
        "Dir::Cache": work / "cache",
        "APT::Sandbox::User": "root",  # the sandbox user cannot enter a private cache folder
        "APT::Update::Post-Invoke": "",  # container images clean the system's cache here, which is not ours to clean
    }
    return [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]


def _debian_mirror() -> str:
    """The mirror of the machine's main Debian suite, whatever format its sources are written in."""
    form = "$(CREATED_BY) $(COMPONENT) $(RELEASE) $(REPO_URI)"
    for line in _output([_tool("apt-get"), "indextargets", "--format", form]).splitlines():
        created_by, component, release, uri = line.split(maxsplit=3)
        if (created_by, component) == ("Packages", "main") and "-" not in release and "/" not in release:
            return uri
    raise BackendError("apt has no Debian source for component main: see /etc/apt/sources.list.d.")


def _debian_keyring() -> Path:
    for name in ("debian-archive-keyring.gpg", "debian-archive-keyring.pgp"):
        keyring = Path("/usr/share/keyrings", name)
        if keyring.is_file():
            return keyring
    raise BackendError("The Debian archive's keys are missing. Install debian-archive-keyring.")


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release()["ID"]
    except OSError:
        return platform.system().lower()


# ------------------------------------------------------------------------------------------------ Go programs

_COLLECTOR_VERSION: Final = "0.155.0"  # as in otelcol.yaml
_JAEGER_MODULE: Final = "github.com/jaegertracing/jaeger"
_JAEGER_GO_MOD: Final = """\
module backend

go 1.24.6

require github.com/jaegertracing/jaeger v1.76.0

tool github.com/jaegertracing/jaeger/cmd/jaeger

replace github.com/Shopify/sarama => github.com/Shopify/sarama v1.33.0
"""


def _fill_jaeger(folder: Path) -> None:
    """Build Jaeger v2.13.0 (module tag v1.76.0): web page a placeholder, API and storage whole."""
    _build_wrapped(folder / "jaeger", _JAEGER_GO_MOD, _JAEGER_MODULE, f"{_JAEGER_MODULE}/cmd/jaeger")


_TEMPO_MODULE: Final = "github.com/grafana/tempo"
_TEMPO_VERSION: Final = "v1.5.1-0.20250529124718-87c2dc380cec"
_TEMPO_GO_MOD: Final = f"""\
module backend

go 1.24

require {_TEMPO_MODULE} {_TEMPO_VERSION}

tool {_TEMPO_MODULE}/cmd/tempo

replace github.com/hashicorp/memberlist => github.com/grafana/memberlist v0.3.1-0.20220708130638-bd88e10a3d91

replace k8s.io/api => k8s.io/api v0.25.0

replace k8s.io/client-go => k8s.io/client-go v0.25.0
"""
# As the go.sum of Grafana itself has them: no public checksum database knows this commit.
_TEMPO_GO_SUM: Final = f"""\
{_TEMPO_MODULE} {_TEMPO_VERSION} h1:wnzJov9RhSHGaTYGzTygL4qq986fLen8xSqnQgaMd28=
{_TEMPO_MODULE} {_TEMPO_VERSION}/go.mod h1:j1IY7J2rUz7TcTjFVVx6HCpyTlYOJPtXuGRZ7sI+vSo=
"""


def _fill_tempo(folder: Path) -> None:
    """Build Tempo from the commit at which its release 2.8 was branched off."""
    _build_wrapped(folder / "tempo", _TEMPO_GO_MOD, _TEMPO_MODULE, f"{_TEMPO_MODULE}/cmd/tempo", _TEMPO_GO_SUM)


def _build_wrapped(target: Path, go_mod: str, module: str, package: str, go_sum: str = "") -> None:
    """Build ``package`` from a module that only requires it.

    Some of its dependencies are in no public checksum database, so their sums are taken from the go.sum that the
    project itself publishes inside ``module``; ``go_sum`` has the sums of ``module`` where that is in none itself.
    """
    go = _go()
    work = target.parent.with_name("module")
    work.mkdir()
    (work / "go.mod").write_text(go_mod)
    (work / "go.sum").write_text(go_sum)
    _run([go, "mod", "download", module], cwd=work)
    published = Path(_output([go, "list", "-m", "-f", "{{.Dir}}", module], cwd=work).strip(), "go.sum")
    with (work / "go.sum").open("a") as sums:
        sums.write(published.read_text())
    _run([go, "mod", "tidy"], cwd=work)
    _run([go, "build", *_go_flags(), "-o", str(target), package], cwd=work, env={"CGO_ENABLED": "0"})


def _fill_collector(folder: Path) -> None:
    """Build the Collector of ``otelcol.yaml`` with OpenTelemetry's builder.

    The builder only writes the program. It would stop at modules that nothing but other modules' tests import and
    that no proxy has, so go.mod and the build, which need none of them, are done here.
    """
    go = _go()
    work = folder.with_name("otelcol")
    work.mkdir()
    builder = f"go.opentelemetry.io/collector/cmd/builder@v{_COLLECTOR_VERSION}"
    _run([go, "install", *_go_flags(), builder], cwd=work, env={"CGO_ENABLED": "0", "GOBIN": str(work)})
    shutil.copy2(_COLLECTOR_MANIFEST, work)
    manifest = ["--config", _COLLECTOR_MANIFEST.name]
    _run([str(work / "builder"), "--skip-get-modules", "--skip-compilation", *manifest], cwd=work)
    (work / "go.mod").write_text(_collector_go_mod(_COLLECTOR_MANIFEST.read_text()))
    _run([go, "mod", "tidy", "-e"], cwd=work)
    _run([go, "build", *_go_flags(), "-o", str(folder / "otelcol"), "."], cwd=work, env={"CGO_ENABLED": "0"})


def _collector_go_mod(manifest: str) -> str:
    """The go.mod of a Collector that consists of the manifest's modules."""
    core = f"go.opentelemetry.io/collector/otelcol v{_COLLECTOR_VERSION}"
    modules = [core, *re.findall(r"gomod: (.+)", manifest)]
    return "\n".join(["module otelcol", "", "go 1.25.0", "", *(f"require {module}" for module in modules), ""])


def _fill_ollama(folder: Path) -> None:
    """Build the last Ollama whose published module is whole."""
    version = "0.11.4"
    flags = " ".join(["-O3", *_vector_flags()])
    environment = {"CGO_ENABLED": "1", "CGO_CFLAGS": flags, "CGO_CXXFLAGS": flags, "GOBIN": str(folder)}
    _tool("cc", "gcc")
    _tool("g++", "c++")
    stamp = f"-X github.com/ollama/ollama/version.Version={version}"
    _run(
        [_go(), "install", *_go_flags(stamp), f"github.com/ollama/ollama@v{version}"],
        cwd=folder,
        env=environment,
    )


def _go_flags(linker: str = "") -> list[str]:
    return ["-trimpath", "-p", str(_JOBS), "-ldflags", f"-s -w {linker}".strip()]


def _vector_flags() -> list[str]:
    """Without AVX2 in the build the model runs at a third of its speed."""
    cpuinfo = Path("/proc/cpuinfo")
    has_avx2 = cpuinfo.is_file() and re.search(r"^flags.*\bavx2\b", cpuinfo.read_text(), re.MULTILINE)
    return ["-march=x86-64-v3"] if has_avx2 else []


def _go() -> str:
    """The go command. Raises `BackendError` where there is none, or one too old."""
    go = shutil.which("go")
    if go is None:
        raise BackendError("Go is needed to build it: install Go 1.24 or newer.")
    found = re.search(r"go(\d+)\.(\d+)", _output([go, "version"]))
    if found is None or (int(found[1]), int(found[2])) < _GO_OLDEST:
        raise BackendError(f"{go} is too old to build it: install Go 1.24 or newer.")
    return go


# ------------------------------------------------------------------------------------------------ running tools


def _tool(*names: str) -> str:
    """The first of these commands that there is. Raises `BackendError`."""
    for name in names:
        found = shutil.which(name)
        if found is not None:
            return found
    raise BackendError(f"{names[0]} is needed to get this back end: install it.")


def _output(command: Sequence[str], cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BackendError(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stdout


def _run(command: Sequence[str], cwd: Path, env: Mapping[str, str] | None = None) -> None:
    """Run a command with a sign of life now and then; its own words are shown only if it fails."""
    shown = " ".join(command[:3]).replace(str(Path(command[0])), Path(command[0]).name, 1)
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command, cwd=cwd, env={**os.environ, **(env or {})}, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            _wait_showing_life(process, shown, started)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        if process.returncode != 0:
            log.seek(0)
            raise BackendError(f"{shown} failed ({process.returncode}):\n" + "".join(log.readlines()[-30:]))


def _wait_showing_life(process: subprocess.Popen[bytes], shown: str, started: float) -> None:
    while True:
        try:
            process.wait(_HEARTBEAT_SECONDS)
            return
        except subprocess.TimeoutExpired:
            print(f"  {shown}: {time.monotonic() - started:.0f} s", flush=True)


BACKENDS: Final[Mapping[str, Backend]] = {
    backend.name: backend
    for backend in (
        Backend("scaphandre", "1.0.2", "SCAPHANDRE_BIN", "2 MB, some seconds", _fill_scaphandre),
        Backend("prometheus", "2.53.3", "PROMETHEUS_BIN", "some seconds", _fill_prometheus),
        Backend("ollama", "0.11.4", "OLLAMA_BIN", "some 90 seconds on two cores", _fill_ollama),
        Backend("jaeger", "2.13.0", "JAEGER_BIN", "some 3 minutes on two cores", _fill_jaeger),
        Backend("tempo", "2.8.0", "TEMPO_BIN", "some 2 minutes on two cores", _fill_tempo),
        Backend("otelcol", _COLLECTOR_VERSION, "OTELCOL_BIN", "some 5 minutes on two cores", _fill_collector),
    )
}


def main(arguments: list[str] | None = None) -> int:
    named = ", ".join(f"{backend.name} ({backend.variable})" for backend in BACKENDS.values())
    parser = argparse.ArgumentParser(prog="tools.backends", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"all if left out: {named}")
    names = parser.parse_args(arguments).names or list(BACKENDS)
    unknown = set(names) - set(BACKENDS)
    if unknown:
        parser.error(f"no such back end: {', '.join(sorted(unknown))}. There are {', '.join(BACKENDS)}.")
    try:
        got = [_got(name) for name in names]  # each is tried, whatever became of the others
    except KeyboardInterrupt:
        print("Broken off; nothing was left behind.", file=sys.stderr)
        return 130
    return 0 if all(got) else 1


def _got(name: str) -> bool:
    """Get a back end and say where it is, or what lacks."""
    try:
        print(f"{name}: {obtain(name)}", flush=True)
        if name == "scaphandre":
            scaphandre_environment()
    except BackendError as err:
        print(err, file=sys.stderr, flush=True)
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())

"""The commands of each example's README, run as they are written; only ports are other ones, so that none is taken."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from tests.support.children import free_port
from tests.support.powercap import PowercapTree
from tools.backends import scaphandre_environment

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

_ROOT = Path(__file__).parents[2]
_EXAMPLES = sorted(path.parent.name for path in _ROOT.glob("examples/*/README.md"))
_PORT_VARIABLES = (
    "JAEGER_PORT",
    "OTLP_PORT",
    "OTLP_GRPC_PORT",
    "LLAMA_PORT",
    "OLLAMA_PORT",
    "TEMPO_HTTP",
    "TEMPO_GRPC",
    "TEMPO_OTLP_GRPC",
    "TEMPO_OTLP_HTTP",
)
_ADDRESS_VARIABLES = ("JAEGER_GRPC", "JAEGER_HEALTH")
_LITERAL_PORTS = {"4317": "OTLP_GRPC_PORT", "4337": "TEMPO_OTLP_GRPC", "3200": "TEMPO_HTTP"}
_SECONDS = 200

_CALL = r"[\d.e+]+ J .*(measured|shared|degraded)"
_SEEN = {
    "openai-one-line": [rf"(?m)^chat smollm2-135m +{_CALL}"],
    "ollama-stream": [
        rf"(?m)^tell two tales +Σ +[\d.]+ J\n(  chat smollm2 +{_CALL}.*\n){{2}}",
        r"meter rapl: package-0",
    ],
    "zero-code": [rf"(?s)(chat smollm2-135m +{_CALL}.*){{2}}"],
    "any-server": [rf"(?m)^three at once +Σ +[\d.]+ J\n(  chat \S+ +{_CALL}.*\n){{3}}"],
    "fastapi-service": [
        rf"(?m)(^ *tell a tale +Σ +[\d.]+ J\n( +chat smollm2-135m +{_CALL}.*\n){{2}}(^(?! *tell).*\n)*){{8}}"
    ],
    "compare-models": [r"smollm2  +\d+\.\d+ +\d+\.\d+ +\d+ ", r"smollm2-small-batches +\d+\.\d+ +\d+\.\d+ +\d+ "],
    "collector-gateway": [
        rf"chat smollm2-135m +{_CALL}",
        r'"job":"fleet"',
        r'"llm.energy.joules","value":\{"doubleValue"',
    ],
    "langchain-rag": [
        rf"(?m)^index +Σ +[\d.]+ J\n(?s:.*)embeddings smollm2-135m +{_CALL}",
        rf"(?m)^answer +Σ +[\d.]+ J\n(?s:.*)chat smollm2-135m +{_CALL}",
    ],
    "langgraph-agent": [rf"(?s)plan +Σ .*chat smollm2-135m +{_CALL}.*write +Σ .*shorten +Σ .*write +Σ "],
    "in-process": [r"(?m)^Σ a story in two parts +[\d.]+ J\n  load the model.*\n(  write the \w+ +[\d.]+ J .*\n){2}"],
    "two-containers": [rf"(text_completion smollm2 +{_CALL}.*\n){{2}}", r"meter [Ss]caphandre"],
}


def test_every_example_is_tested_and_listed_when_there_is_one() -> None:
    """None can be added without a line here and in the list."""
    assert set(_EXAMPLES) == set(_SEEN)
    listed = re.findall(r"\]\(([a-z-]+)/README\.md\)", (_ROOT / "examples" / "README.md").read_text())
    assert sorted(listed) == _EXAMPLES


@pytest.mark.parametrize("example", _EXAMPLES)
def test_commands_show_what_the_readme_says_when_they_are_run(
    example: str, powercap: PowercapTree, tmp_path: Path
) -> None:
    """In one shell, from the top of the checkout, with the synthetic counters as the machine's."""
    text = (_ROOT / "examples" / example / "README.md").read_text()
    ports = {name: str(free_port()) for name in _PORT_VARIABLES}
    script = tmp_path / "commands.sh"
    script.write_text("set -e\n" + _with_ports("\n".join(_commands(text)), ports))
    settings = {
        **scaphandre_environment(),
        "POWERCAP": str(powercap.root),
        "OTEL_LLM_ENERGY_POWERCAP_ROOT": str(powercap.root),
        "OTEL_LLM_ENERGY_IDLE_CACHE": "off",
        "OTEL_LLM_ENERGY_IDLE_WATTS": "package-0=20,package-0/dram=2",
        **{name: f"127.0.0.1:{free_port()}" for name in _ADDRESS_VARIABLES},
    }
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "OPENAI_", "OLLAMA_"))}
    code, said = _run_to_end(script, {**inherited, **settings, **ports})
    assert code == 0, said
    for pattern in _SEEN[example]:
        assert re.search(pattern, said), f"{pattern}\n{said}"


def _run_to_end(script: Path, env: Mapping[str, str]) -> tuple[int, str]:
    """Exit code and words; whatever it left running is ended."""
    log = script.with_suffix(".log")
    with log.open("w") as out:
        process = subprocess.Popen(
            ["bash", str(script)],
            cwd=_ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            code = -1
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return code, log.read_text()


def test_containers_have_the_files_and_services_that_they_name_when_compose_starts_them() -> None:
    """The containers themselves are not run here: their programs are, as processes, by the README's commands."""
    folder = _ROOT / "examples" / "two-containers"
    services = yaml.safe_load((folder / "compose.yaml").read_text())["services"]
    environment = services["app"]["environment"]
    for host in re.findall(r"(?:http://|^)([a-z]+):\d+", "\n".join(map(str, environment.values())), re.MULTILINE):
        assert host in services
    for volume in services["app"]["volumes"]:
        assert (folder / volume.split(":")[0]).is_file()


def _commands(text: str) -> Iterator[str]:
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                yield line.removeprefix("$ ")


def _with_ports(script: str, ports: dict[str, str]) -> str:
    """Put free ports for those that commands name: the same for the same."""
    literal = {number: ports[name] for number, name in _LITERAL_PORTS.items()}

    def free(found: re.Match[str]) -> str:
        return literal.setdefault(found[0], str(free_port()))

    return re.sub(r"(?<=[:\s])\d{4}\b(?=$|[\s;/'\"#])", free, script, flags=re.MULTILINE)

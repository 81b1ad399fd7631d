"""The commands of each example's README, run as they are written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.e2e.typed import ROOT, blocks, typed
from tests.support.powercap import PowercapTree

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

_EXAMPLES = sorted(path.parent.name for path in ROOT.glob("examples/*/README.md"))

_SAME = 1e-3
_CALL = r"[\d.e+]+ J .*(measured|shared|degraded)"
_SEEN = {
    "openai-one-line": [rf"(?m)(^chat smollm2-135m +{_CALL}.*\n){{2}}"],
    "ollama-stream": [
        rf"(?m)^tell two tales +Σ +[\d.]+ J\n(  chat smollm2 +{_CALL}.*\n){{2}}",
        r"meter rapl: package-0",
    ],
    "zero-code": [rf"(?s)(chat smollm2-135m +{_CALL}.*){{2}}"],
    "any-server": [rf"(?m)^three at once +Σ +[\d.]+ J\n(  chat \S+ +{_CALL}.*\n){{3}}"],
    "fastapi-service": [
        rf"(?m)(^ *tell a tale +Σ +[\d.]+ J\n( +chat smollm2-135m +{_CALL}.*\n){{2}}(^(?! *tell).*\n)*){{8}}",
        r'"metric":\{"instance":"[^"]+:\d+"\}',
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
    listed = re.findall(r"\]\(([a-z-]+)/README\.md\)", (ROOT / "examples" / "README.md").read_text())
    assert sorted(listed) == _EXAMPLES


@pytest.mark.parametrize("example", _EXAMPLES)
def test_commands_show_what_the_readme_says_when_they_are_run(
    example: str, powercap: PowercapTree, tmp_path: Path
) -> None:
    """All blocks of a README in one shell."""
    commands = [command for block in blocks(ROOT / "examples" / example / "README.md") for command in block]
    said = typed(commands, powercap, tmp_path)
    for pattern in _SEEN[example]:
        assert re.search(pattern, said), f"{pattern}\n{said}"
    if example in ("collector-gateway", "fastapi-service"):
        assert _counted_joules(said) == pytest.approx(_joules_on_calls(said), rel=_SAME), said


def _joules_on_calls(said: str) -> float:
    """Of the trees that joules.py printed, four digits a call."""
    return sum(float(joules) for joules in re.findall(r"(?m)^ *chat \S+ +([\d.e+]+) J", said))


def _counted_joules(said: str) -> float:
    """Of all instances in Prometheus' answer: less than was on the calls if workers overwrote each other."""
    return sum(float(joules) for joules in re.findall(r'"value":\[[\d.]+,"([\d.e+]+)"\]', said))


def test_containers_have_the_files_and_services_that_they_name_when_compose_starts_them() -> None:
    """The containers themselves are not run here: their programs are, as processes, by the README's commands."""
    folder = ROOT / "examples" / "two-containers"
    services = yaml.safe_load((folder / "compose.yaml").read_text())["services"]
    environment = services["app"]["environment"]
    for host in re.findall(r"(?:http://|^)([a-z]+):\d+", "\n".join(map(str, environment.values())), re.MULTILINE):
        assert host in services
    (checkout,) = services["app"]["volumes"]
    source, mounted, _ = checkout.split(":")
    assert (folder / source / "pyproject.toml").is_file()
    assert (folder / source / Path(services["app"]["working_dir"]).relative_to(mounted) / "app.py").is_file()

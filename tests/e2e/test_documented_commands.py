"""Every command that a page tells a reader to type: run as it is written, or named here with the reason why not.

The examples' own pages are in test_examples.py. What a page takes for granted (an app, a server, programs on the PATH)
is made before. Only folders below /tmp are other ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.e2e.typed import ROOT, blocks, typed
from tests.support.powercap import PowercapTree
from tools.backends import BACKENDS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

_PAGES = ("*.md", "collector-config/*.md", "docs/**/*.md", "examples/*.md")


@dataclass(frozen=True, slots=True)
class Block:
    """One block of commands, known by its page and by how it begins.

    Attributes:
        before: commands that make what the page takes for granted.
        after: commands that look at what came of it.
        seen: what is to be among the words of all of them.
        left_out: how lines begin that are not run, each with the reason.
        online: they fetch something.
    """

    page: str
    beginning: str
    before: str = ""
    after: str = ""
    seen: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    online: bool = False

    def commands(self) -> list[str]:
        """Those that are run."""
        (found,) = (block for block in blocks(ROOT / self.page) if block[0].startswith(self.beginning))
        return [command for command in found if not command.startswith(tuple(self.left_out))]


_JAEGER = BACKENDS["jaeger"].folder
_AWAIT = "curl -s --retry 60 --retry-all-errors --retry-delay 1 -f"
_SERVER = f"""\
export checkout=$PWD PATH="$PWD/.venv/bin:$PATH" OPENAI_API_KEY=unused
python -m otel_llm_energy.cli.model_server --model "$OTEL_LLM_ENERGY_CACHE"/SmolLM2*.gguf --port 8000 < /dev/null &
{_AWAIT} http://localhost:8000/v1/models
export OPENAI_BASE_URL=http://localhost:8000/v1"""
_AN_APP = f"""\
{_SERVER}
mkdir "$HOME/work" && cd "$HOME/work"
cp -r "$checkout/collector-config" . && cp "$checkout/examples/zero-code/main.py" app.py"""
_ITS_TRACE = 'python "$checkout/examples/joules.py" my-app'
_PROMPTS = """\
(echo prompt; for n in $(seq 12); do echo "Name $n things that are $n years old."; done) > prompts.csv
(echo prompt; echo "Why is the sky blue?") > other-prompts.csv"""
_WHAT_ALL_BACK_ENDS_HAVE = f"""\
{_AWAIT} http://localhost:13133
{_AWAIT} http://localhost:3200/ready
{_SERVER}
export OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318 OTEL_SERVICE_NAME=my-app
python examples/openai-one-line/main.py
{_ITS_TRACE}
metric='http://localhost:9090/api/v1/query?query=llm_energy_consumption_joules_total'
until curl -s "$metric" | grep my-app; do sleep 1; done
traces='http://localhost:3200/api/search?q=%7B%20span.llm.energy.joules%20%3E%200.0%20%7D'
until curl -s "$traces" | grep my-app; do sleep 1; done"""

_CALL = r"chat smollm2-135m +[\d.e+]+ J .*(measured|shared|degraded)"
_DEMO = r"demo +Σ (?s:.*)Tell a tale of a fox\. .*(measured|degraded|shared) +rapl"
_PHOENIX = "855 MB under a licence that is not an open-source one; the page says that it was looked at by hand"
_DEMO_IS_SET_UP = "touch .venv/demo.stamp"  # or make, without a network, would try to fetch what is there
_DOCKER = "there is no Docker here; what its containers mount and name is held together in test_configurations.py"

_BLOCKS = (
    Block(
        "README.md",
        "make demo",
        seen=(_DEMO,),
        left_out={"make test": "the first check of .ci/run; this is another"},
        online=True,
    ),
    Block("README.md", "(sleep 55", seen=(_DEMO, r"where the energy went, J +metered (?s:.*)\nsum +\d")),
    Block(
        "README.md", "~/.cache", before=_DEMO_IS_SET_UP, seen=(_DEMO, r'"key":"llm\.energy\.joules","type":"float64"')
    ),
    Block(
        "README.md",
        "export OTEL_EXPORTER_OTLP_ENDPOINT",
        before=f"{_JAEGER}/jaeger &\n{_AN_APP}",
        after=_ITS_TRACE,
        seen=(_CALL,),
    ),
    Block(
        "README.md",
        "pip install .",
        before='.venv/bin/python -m venv "$HOME/app" && . "$HOME/app/bin/activate"',
        after="pip install 'otel-llm-energy[nvidia]'",
        seen=("LLM calls on this machine get measured joules", r"(?m)Successfully installed nvidia-ml-py-\S+$"),
        online=True,
    ),
    Block(
        "README.md", "pip install 'otel-llm-energy[study]'", left_out={"": "the first lines of those of docs/study.md"}
    ),
    Block(
        "docs/study.md",
        "pip install",
        before=f"{_AN_APP}\n{_PROMPTS}\nexport PIP_NO_INDEX=1",
        after="ls my-study/report.html my-model.json",
        seen=(r"Requirement already satisfied: otel-llm-energy\[study\]", r"my-study/report\.html", r"my-model\.json"),
    ),
    Block(
        "docs/study.md",
        "otel-llm-energy study collect --plan",
        left_out={"": "names two machines; tests/study reads the plan of that page, and collects by others"},
    ),
    Block(
        "docs/backends/jaeger.md",
        "jaeger --config",
        before=f'PATH="{_JAEGER}:$PATH"\n{_AN_APP}',
        after=_ITS_TRACE,
        seen=(_CALL,),
    ),
    Block("docs/backends/phoenix.md", "python3 -m venv phoenix", left_out={"": _PHOENIX}),
    Block("docs/backends/tempo-grafana.md", "docker compose", left_out={"": _DOCKER}),
    Block(
        "docs/servers-elsewhere.md",
        "export OTEL_LLM_ENERGY_SERVERS",
        before='PATH="$PWD/.venv/bin:$PATH"',
        after="otel-llm-energy doctor",
        seen=(r"(?s)(http://prometheus:9090/\S*: no connection.*){2}",),
    ),
    Block("collector-config/README.md", "docker compose", left_out={"": _DOCKER}),
    Block(
        "collector-config/README.md",
        "PATH=",
        after=_WHAT_ALL_BACK_ENDS_HAVE,
        seen=(_CALL, r'"job":"my-app"', r'"rootServiceName":"my-app"'),
    ),
)


def test_every_command_is_run_or_says_why_not_when_a_page_gives_it() -> None:
    """A new block needs a line here; a line for a block that is gone has to go."""
    pages = [page for form in _PAGES for page in ROOT.glob(form)]
    given = sorted((str(page.relative_to(ROOT)), block[0]) for page in pages for block in blocks(page))
    known = sorted((block.page, block.beginning) for block in _BLOCKS)
    assert len(given) == len(known), given
    assert all(
        page == of and command.startswith(words) for (page, command), (of, words) in zip(given, known, strict=True)
    )


def test_shorter_list_is_part_of_the_longer_when_only_that_is_run() -> None:
    """What the README says of studies is what the page of studies says first."""
    (short,) = (block for block in blocks(ROOT / "README.md") if block[0].startswith("pip install 'otel"))
    (long,) = (block for block in blocks(ROOT / "docs/study.md") if block[0].startswith("pip install"))
    assert short == [re.sub(r" +#.*", "", command) for command in long[: len(short)]]


@pytest.mark.parametrize(
    "block", [each for each in _BLOCKS if "" not in each.left_out], ids=lambda each: f"{each.page}: {each.beginning}"
)
def test_commands_do_what_the_page_says_when_they_are_typed(
    block: Block, powercap: PowercapTree, tmp_path: Path
) -> None:
    """One block in a shell of its own."""
    commands = [command.replace("/tmp/", f"{tmp_path}/") for command in block.commands()]
    said = typed([block.before, *commands, block.after], powercap, tmp_path, block.online)
    for pattern in block.seen:
        assert re.search(pattern, said), f"{pattern}\n{said}"

"""The main job: the one line in a user's script, and measured joules found through Jaeger's API."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from ollama import Client

from otel_llm_energy import conventions as names
from tests.e2e.conftest import RunApp
from tests.e2e.spans import JaegerSpan, spans_of
from tests.support.backends import Jaeger, Ollama
from tests.support.powercap import MEMORY, PACKAGE, PowercapTree

if TYPE_CHECKING:
    from tests.conftest import LlamaServerFactory

pytestmark = pytest.mark.e2e

OPENAI_SERVICE = "asks-openai"
OLLAMA_SERVICE = "asks-ollama"
_ROUNDING = 1e-5  # attributes are rounded to six digits


class Metered:
    """What the counters moved while an app ran."""

    def __init__(self, powercap: PowercapTree) -> None:
        self._powercap = powercap
        self._start_uj = self._now_uj()

    def joules(self) -> float:
        """Energy of socket and memory since the start, J."""
        return (self._now_uj() - self._start_uj) / 1e6

    def _now_uj(self) -> int:
        return self._powercap.read_uj(PACKAGE) + self._powercap.read_uj(MEMORY)


@pytest.fixture(scope="module")
def openai_run(run_app: RunApp, llama_server: LlamaServerFactory, powercap: PowercapTree) -> float:
    """The OpenAI script has run against llama.cpp; the joules that were metered meanwhile."""
    metered = Metered(powercap)
    run_app("ask_openai.py", OPENAI_SERVICE, {"OPENAI_BASE_URL": llama_server().base_url, "OPENAI_API_KEY": "unused"})
    return metered.joules()


@pytest.fixture(scope="module")
def openai_spans(openai_run: float, jaeger: Jaeger) -> list[JaegerSpan]:
    """What Jaeger has of the OpenAI script's one trace."""
    return spans_of(jaeger.await_traces(OPENAI_SERVICE))


@pytest.fixture(scope="module")
def ollama_spans(run_app: RunApp, ollama: Ollama, jaeger: Jaeger) -> list[JaegerSpan]:
    """What Jaeger has of the three calls of the Ollama script, each a trace of its own; the first loads the model."""
    Client(ollama.host).generate(ollama.model, keep_alive=0)  # unloads it, if an earlier test has asked
    run_app("ask_ollama.py", OLLAMA_SERVICE, {"OLLAMA_HOST": ollama.host, "APP_MODEL": ollama.model})
    return spans_of(jaeger.await_traces(OLLAMA_SERVICE, count=3))


def assert_measured_by_scaphandre(call: JaegerSpan) -> None:
    """The call's energy was read from the meter, lies in its bounds, and its parts add up."""
    attributes = call.attributes
    assert attributes[names.QUALITY] in ("measured", "shared", "degraded"), attributes.get(names.REASON)
    assert attributes[names.METER] == "scaphandre"
    joules = call.joules()
    assert call.joules(names.LOWER_JOULES) <= joules <= call.joules(names.UPPER_JOULES)
    assert joules > 0
    assert 0 < attributes[names.COVERAGE] <= 1
    parts = call.joules(names.CPU_JOULES) + call.joules(names.MEMORY_JOULES)
    assert parts == pytest.approx(joules, rel=_ROUNDING)
    assert call.joules(names.MEMORY_JOULES) == pytest.approx(joules / 11, rel=0.01)  # a tenth of the socket's
    assert attributes[names.MILLIJOULES] == pytest.approx(joules * 1000, abs=1)
    output_tokens = attributes["gen_ai.usage.output_tokens"]
    assert call.joules(names.JOULES_PER_OUTPUT_TOKEN) == pytest.approx(joules / output_tokens, rel=_ROUNDING)


def test_every_call_carries_measured_joules_when_an_openai_script_has_the_one_line(
    openai_spans: list[JaegerSpan],
) -> None:
    """Three plain calls and a streamed one: each has joules, bounds and parts that add up."""
    calls = [span for span in openai_spans if span.is_llm_call]
    assert len(calls) == 4
    for call in calls:
        assert_measured_by_scaphandre(call)


def test_root_holds_the_sum_of_its_calls_when_jaeger_cannot_add(openai_spans: list[JaegerSpan]) -> None:
    """The root's subtree total is what its calls took together."""
    (root,) = (span for span in openai_spans if span.parent_id is None)
    total = sum(span.joules() for span in openai_spans if span.is_llm_call)
    assert root.joules(names.SUBTREE_JOULES) == pytest.approx(total, rel=_ROUNDING)
    assert names.JOULES not in root.attributes
    assert not root.attributes.get(names.SUBTREE_INCOMPLETE, False)


def test_calls_take_no_more_than_was_metered_when_the_script_has_ended(
    openai_spans: list[JaegerSpan], openai_run: float
) -> None:
    """No call is billed what the meter did not read."""
    assert sum(span.joules() for span in openai_spans if span.is_llm_call) <= openai_run


def test_call_is_found_by_its_class_when_jaeger_searches_exact_strings(
    openai_spans: list[JaegerSpan], jaeger: Jaeger
) -> None:
    """Jaeger finds a call by the decade of its joules, and by no other."""
    energy_class = next(span.attributes[names.CLASS] for span in openai_spans if span.is_llm_call)
    assert jaeger.traces(OPENAI_SERVICE, {names.CLASS: energy_class})
    assert not jaeger.traces(OPENAI_SERVICE, {names.CLASS: "1000000-10000000 J"})


def test_every_call_carries_measured_joules_when_an_ollama_script_has_the_one_line(
    ollama_spans: list[JaegerSpan],
) -> None:
    """Chat, generate and a streamed chat of a script without any tracing of its own: each arrives with joules."""
    assert len(ollama_spans) == 3
    for call in ollama_spans:
        assert call.is_llm_call
        assert_measured_by_scaphandre(call)


def test_loading_is_billed_when_ollama_loads_the_model_for_the_first_call(ollama_spans: list[JaegerSpan]) -> None:
    """Ollama says how long it loaded; the first call's span carries that."""
    assert ollama_spans[0].attributes[names.SERVER_LOAD_SECONDS] > ollama_spans[1].attributes[names.SERVER_LOAD_SECONDS]

"""Two calls in one batch, a long prompt beside a long answer: which way of sharing comes nearer to the Shapley value?

Each is asked alone, then both at once of a llama.cpp server with two slots. What a call adds, on average over both
orders of joining, is its Shapley value: (alone + both - the other alone) / 2, of the energy that the server really used
and the idle energy while it was at work. Both ways of sharing are applied to the very same readings.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from openai import OpenAI

from benchmarks.bench import LAST_TICK_NS, Call, Session, session
from benchmarks.replay import replayed
from otel_llm_energy.cli.model import ensure_model
from otel_llm_energy.cli.model_server import ModelServer, ServerOptions
from tests.support.feeder import Truth

_SHARINGS = ("equal-time", "phase-tokens")
_CONTEXT_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Round:
    """One call of each kind alone, then both at once; J. ``shares`` are by way of sharing, prompt first."""

    prompt_alone: float
    answer_alone: float
    together: float
    shares: dict[str, tuple[float, float]]

    @property
    def shapley(self) -> tuple[float, float]:
        """Of the call with the long prompt and of that with the long answer, J."""
        prompt = (self.prompt_alone + self.together - self.answer_alone) / 2
        return prompt, self.together - prompt


class Asker:
    """Asks for a long prompt's short answer, or a short prompt's long answer."""

    def __init__(self, server: ModelServer, prompt_words: int, answer_tokens: int) -> None:
        self._client = OpenAI(base_url=server.base_url, api_key="none", timeout=300)
        self._prompt_words = prompt_words
        self._answer_tokens = answer_tokens
        self._numbers = itertools.count()

    def long_prompt(self) -> None:
        self._ask(" lamp" * self._prompt_words, 8)

    def long_answer(self) -> None:
        self._ask("", self._answer_tokens)

    def both(self) -> None:
        """The long answer is being written when the long prompt arrives."""
        answer = threading.Thread(target=self.long_answer)
        answer.start()
        time.sleep(0.3)
        self.long_prompt()
        answer.join()

    def _ask(self, words: str, tokens: int) -> None:
        messages: Any = [{"role": "user", "content": f"Tell story number {next(self._numbers)}.{words}"}]
        extra = {"cache_prompt": False, "ignore_eos": True, "temperature": 0}
        self._client.chat.completions.create(model="smollm2", messages=messages, max_tokens=tokens, extra_body=extra)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks shapley", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt-words", type=int, default=600)
    parser.add_argument("--answer-tokens", type=int, default=300)
    options = parser.parse_args(arguments)
    server_options = ServerOptions(ensure_model(), slots=2, threads=1, context_tokens=_CONTEXT_TOKENS)
    with (
        ModelServer(server_options) as server,
        session("rapl", server.pid, clients=["openai"], share="phase-tokens") as running,
    ):
        asker = Asker(server, options.prompt_words, options.answer_tokens)
        asker.long_prompt()
        for _ in range(options.rounds):
            for ask in (asker.long_prompt, asker.long_answer, asker.both):
                ask()
                time.sleep(0.5)
        _report(_rounds(running))
    return 0


def _rounds(running: Session) -> list[Round]:
    """The first call only shows the server; then come four of each round."""
    calls, truth = running.calls(), running.truth()
    shares = {name: replayed(running.ledger, share=name) for name in _SHARINGS}
    rounds = []
    for first in range(1, len(calls), 4):
        prompt, answer, *both = calls[first : first + 4]
        # Of both, the answer was asked for first.
        billed = {name: (_known(values[first + 3]), _known(values[first + 2])) for name, values in shares.items()}
        rounds.append(Round(_used(truth, [prompt]), _used(truth, [answer]), _used(truth, both), billed))
    return rounds


def _known(joules: float | None) -> float:
    if joules is None:
        raise SystemExit("a call has no bill")
    return joules


def _used(truth: Truth, calls: Sequence[Call]) -> float:
    """What the server used for these calls, and the idle energy while one of them was at work, J."""
    start_ns, end_ns = min(call.start_ns for call in calls), max(call.end_ns for call in calls)
    first_ns, last_ns = min(call.window[0] for call in calls), max(call.window[1] for call in calls)
    return truth.server_joules(start_ns, end_ns + LAST_TICK_NS) + truth.idle_joules(first_ns, last_ns)


def _report(rounds: Sequence[Round]) -> None:
    print(f"{len(rounds)} rounds; J on average       long prompt   long answer")
    _line("alone", [(each.prompt_alone, each.answer_alone) for each in rounds])
    _line("Shapley value of both at once", [each.shapley for each in rounds])
    off = {name: statistics.fmean(_distance(each.shares[name], each.shapley) for each in rounds) for name in _SHARINGS}
    for name in _SHARINGS:
        _line(name, [each.shares[name] for each in rounds], f"   off by {off[name]:.1f} J of both")
    nearer = off["phase-tokens"] < off["equal-time"]
    print(f"target: phase-tokens nearer than equal-time: {'met' if nearer else 'MISSED'}")


def _line(name: str, pairs: Sequence[tuple[float, float]], more: str = "") -> None:
    prompt, answer = (statistics.fmean(values) for values in zip(*pairs, strict=True))
    print(f"{name:34} {prompt:8.1f}      {answer:8.1f}{more}")


def _distance(one: tuple[float, float], other: tuple[float, float]) -> float:
    return abs(one[0] - other[0]) + abs(one[1] - other[1])

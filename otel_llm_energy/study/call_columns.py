"""What a call's row says beside its span: how it was planned and what was answered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from otel_llm_energy.study.askers import Asker
from otel_llm_energy.study.features import prompt_features
from otel_llm_energy.study.manifest import client_facts
from otel_llm_energy.study.plan import Plan, PlannedCall
from otel_llm_energy.study.prompts import Prompt, sha256_of
from otel_llm_energy.study.scores import Score

_ERROR_CHARACTERS: Final = 500


class CallColumns:
    """Makes these columns for the calls of one plan. Safe from several threads.

    The servers are asked for their facts at once, and for the length of each prompt if the plan says so.
    """

    def __init__(self, plan: Plan, askers: Mapping[str, Asker], score: Score, *, content: bool) -> None:
        self._plan = plan
        self._askers = askers
        self._score = score
        self._content = content
        self._client_facts = client_facts()
        self._server_facts = {
            (server.name, model): askers[server.name].facts(model) for server in plan.servers for model in server.models
        }

    def planned(self, call: PlannedCall, attempt: int) -> dict[str, Any]:
        """What is known before the call."""
        prompt = call.prompt
        row: dict[str, Any] = {
            "call_id": call.id,
            "attempt": attempt,
            "source": "study",
            "position": call.position,
            "deployment": call.deployment,
            "server": call.server.name,
            "machine": call.server.machine or self._client_facts["client_cpu"],
            "model": call.model,
            "prompt_id": prompt.id,
            "prompt_sha256": prompt.sha256,
            "type": prompt.type,
            "conversation": prompt.conversation,
            "turn": prompt.turn,
            "repeat": call.repeat,
            "error_type": None,
            "max_tokens": call.max_tokens,
            "temperature": self._plan.temperature,
            "seed": self._plan.seed,
            "planned_concurrency": self._plan.concurrency,
            **prompt_features(prompt.text),
            **self._client_facts,
            **self._server_facts[call.server.name, call.model],
        }
        if self._content:
            row["prompt"] = prompt.text
        if self._plan.tokenize:
            row["prompt_tokens"] = self._askers[call.server.name].count_tokens(call.model, prompt.text)
        return row

    def answered(self, prompt: Prompt, answer: str, failure: Exception | None) -> dict[str, Any]:
        """What is known after it; the answer to a call that failed is what had come until then."""
        row: dict[str, Any] = {"response_sha256": sha256_of(answer), "response_characters": len(answer)}
        if self._content:
            row["response"] = answer
        if failure is not None:
            return row | self._failure(failure)
        try:
            row["score"] = self._score(prompt, answer)
        except Exception as error:  # noqa: BLE001 - the user's function; the call's energy is known all the same
            row["score_error"] = error_words(error) if self._content else type(error).__qualname__
        return row

    def _failure(self, failure: Exception) -> dict[str, Any]:
        columns = {"error_type": type(failure).__qualname__}
        if self._content:  # a server may quote the prompt
            columns["error"] = error_words(failure)
        return columns


def error_words(error: BaseException) -> str:
    """What an error says, if it is not too long; its kind if it says nothing."""
    return str(error)[:_ERROR_CHARACTERS] or type(error).__qualname__

"""What the demo asks: three questions one after another, four at once and one streamed, by a plain OpenAI client."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from opentelemetry.trace import Tracer

from otel_llm_energy.cli import CommandError

ROOT_SPAN: Final = "demo"
ONE_BY_ONE: Final = ("What is a joule?", "Describe the ocean.", "Why is the sky blue?")
AT_ONCE: Final = ("How do birds fly?", "Name three colours.", "What is the moon?", "Why does bread rise?")
STREAMED: Final = "Tell a tale of a fox."
CALLS: Final = len(ONE_BY_ONE) + len(AT_ONCE) + 1

_MAX_TOKENS = 100
_TIMEOUT_SECONDS = 300


class Questioner:
    """Asks one server.

    Args:
        base_url: of an OpenAI-compatible API, such as ``"http://127.0.0.1:8080/v1"``.
        api_key: its key; ``None`` for one that needs none.
        model: its name there; ``None`` for the first that the server lists.

    Raises:
        CommandError: the server does not answer, or has no model.
    """

    def __init__(self, base_url: str, api_key: str | None, model: str | None) -> None:
        import openai

        self._base_url = base_url
        self._error = openai.OpenAIError
        # Tried again, a call would have cost more than its span says.
        self._client = openai.OpenAI(
            base_url=base_url, api_key=api_key or "unused", max_retries=0, timeout=_TIMEOUT_SECONDS
        )
        # Imported here and now: Ctrl-C within an import of pydantic's classes comes out as an error of theirs.
        self._completions = self._client.chat.completions
        self.model = model or self._first_model()
        self.asked: dict[str, str] = {}
        """The question of each answer, by the answer's id."""

    def ask_all(self, tracer: Tracer) -> None:
        """Ask all questions, each group below a span of its own. Raises `CommandError` if one is not answered."""
        with tracer.start_as_current_span(ROOT_SPAN):
            with tracer.start_as_current_span("one after another"):
                for question in ONE_BY_ONE:
                    self._ask(question)
            with tracer.start_as_current_span("four at once"):
                _at_once([partial(self._ask, question) for question in AT_ONCE])
            with tracer.start_as_current_span("streamed"):
                self._ask_streamed(STREAMED)

    def _ask(self, question: str) -> None:
        try:
            answer = self._completions.create(**self._request(question))
        except self._error as error:
            raise self._failed(error) from error
        if isinstance(answer, str):
            raise self._no_model_server()
        self.asked[answer.id] = question

    def _ask_streamed(self, question: str) -> None:
        try:
            chunks = self._completions.create(
                **self._request(question), stream=True, stream_options={"include_usage": True}
            )
            for chunk in chunks:
                self.asked[chunk.id] = question
        except self._error as error:
            raise self._failed(error) from error

    def _request(self, question: str) -> dict[str, Any]:
        messages = [{"role": "user", "content": question}]
        return {"model": self.model, "messages": messages, "max_tokens": _MAX_TOKENS, "temperature": 0}

    def _first_model(self) -> str:
        try:
            models = self._client.models.list().data
        except self._error as error:
            raise self._failed(error) from error
        except AttributeError as error:  # the library takes a web page for text, in which it looks for models
            raise self._no_model_server() from error
        if not models:
            raise CommandError(f"{self._base_url} lists no model. Name one with --model.")
        return models[0].id

    def _failed(self, error: Exception) -> CommandError:
        return CommandError(f"The server at {self._base_url} did not answer: {error}")

    def _no_model_server(self) -> CommandError:
        return CommandError(f"What answers at {self._base_url} is no OpenAI-compatible server. Is a /v1 missing?")


def _at_once(tasks: Sequence[Callable[[], None]]) -> None:
    """Do all tasks at the same time, below the span of now; raises the first error.

    The threads are daemons, so that Ctrl-C waits for none of them.
    """
    errors: list[BaseException] = []

    def do(task: Callable[[], None]) -> None:
        try:
            task()
        except CommandError as error:
            errors.append(error)

    threads = [threading.Thread(target=contextvars.copy_context().run, args=(do, task), daemon=True) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]

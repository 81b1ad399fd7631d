"""What a request asks for and an answer says, read from payloads that may have any shape.

A client library is described by `Route` rows: which path is which operation, how its parameters become attributes,
and how the facts are read from its answers. All of it is pure. `Call` guards it in one place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from opentelemetry.util.types import AttributeValue

from otel_llm_instrumentation import semconv
from otel_llm_instrumentation.calls import ServerTimings
from otel_llm_instrumentation.content import Content

NS_PER_SECOND: Final = 1_000_000_000
_INT64_MAX: Final = 2**63 - 1
_NO_FIELDS: Final[Mapping[str, Any]] = {}


@dataclass(slots=True)
class Facts:
    """What the server said about a call; ``None`` where it said nothing. Nothing is ever guessed.

    Attributes:
        provider: who answered, where the answer shows it (`otel_llm_instrumentation.providers`).
        input_tokens: all tokens of the prompt, cached ones among them.
        error_type: the server says that it failed, in an answer that is none by its HTTP status.
    """

    provider: str | None = None
    response_model: str | None = None
    response_id: str | None = None
    finish_reasons: list[str] | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_input_tokens: int | None = None
    reasoning_output_tokens: int | None = None
    timings: ServerTimings | None = None
    error_type: str | None = None


@dataclass(frozen=True, slots=True)
class Parameter:
    """A request parameter that becomes the attribute ``key``, unless ``clean`` says ``None``."""

    key: str
    clean: Callable[[object], AttributeValue | None]


@dataclass(frozen=True, slots=True)
class Route:
    """One operation of a server's API: what to read from its requests and answers.

    Attributes:
        read: the facts in an answer: the one response, or the last chunks of a stream, oldest first.
        content: how what was said is read, where the user asks for it; ``None`` where nothing is said.
    """

    operation: str
    parameters: Mapping[str, Parameter]
    read: Callable[[Sequence[object]], Facts]
    content: Content | None = None


@dataclass(slots=True)
class Request:
    """A call that is about to be made, as its client library describes it.

    Attributes:
        body: of the request, of which content is read.
        in_process: no server is called: the model runs in this process.
    """

    route: Route
    provider: str
    model: str | None
    address: str | None
    port: int | None
    streaming: bool
    attributes: dict[str, AttributeValue] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    in_process: bool = False

    @property
    def choices(self) -> int:
        """How many answers were asked for."""
        count = self.attributes.get(semconv.REQUEST_CHOICE_COUNT, 1)
        return count if isinstance(count, int) else 1


def request_attributes(body: Mapping[str, object], parameters: Mapping[str, Parameter]) -> dict[str, AttributeValue]:
    """The attributes of the parameters that ``body`` gives; what has the wrong type is left out."""
    attributes: dict[str, AttributeValue] = {}
    for name, value in body.items():
        parameter = parameters.get(name)
        if parameter is not None and (clean := parameter.clean(value)) is not None:
            attributes[parameter.key] = clean
    return attributes


def fields(payload: object) -> Mapping[str, Any]:
    """The fields of a mapping or of a pydantic model, undeclared ones among them; nothing if it has none."""
    if isinstance(payload, dict):
        return payload
    try:
        declared: Mapping[str, Any] = payload.__dict__
        undeclared: Mapping[str, Any] | None = payload.__pydantic_extra__  # type: ignore[attr-defined]
    except AttributeError:  # pydantic 1, or no model at all
        return getattr(payload, "__dict__", _NO_FIELDS)
    return {**declared, **undeclared} if undeclared else declared


def as_items(value: object) -> Sequence[Any]:
    """The items of a list or tuple; none of anything else."""
    return value if isinstance(value, (list, tuple)) else ()


def as_text(value: object) -> str | None:
    """A string that says something, else ``None``."""
    return value if isinstance(value, str) and value else None


def as_texts(value: object) -> list[str] | None:
    """A string or a list of strings, as a list of strings."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, (list, tuple)):
        return [text for text in value if isinstance(text, str)] or None
    return None


def as_count(value: object) -> int | None:
    """A whole number from 0 on that OTLP can carry, else ``None``. A bool is none."""
    return value if type(value) is int and 0 <= value <= _INT64_MAX else None


def as_integer(value: object) -> int | None:
    """A whole number of either sign that OTLP can carry, else ``None``. A bool is none."""
    return value if type(value) is int and -_INT64_MAX <= value <= _INT64_MAX else None


def as_number(value: object) -> float | None:
    """A number as a double, else ``None``."""
    return float(value) if type(value) is float or type(value) is int else None


def as_seconds(value: object, per_second: float) -> float | None:
    """A length of time given in units of which there are ``per_second`` in a second; finite, and never negative."""
    if (type(value) is float or type(value) is int) and 0 <= value <= _INT64_MAX:
        # To the nanosecond, as some servers' own figures have the noise of floats; `round(..., 9)` takes far longer.
        return round(value * (NS_PER_SECOND / per_second)) / NS_PER_SECOND
    return None

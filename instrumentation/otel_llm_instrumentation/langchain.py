"""LangChain and LangGraph, by the official ``opentelemetry-instrumentation-genai-langchain`` where it is installed.

Its spans stand for the calls; the client wrappers step aside for them. Without it the clients' own spans do.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from collections.abc import Collection
from types import ModuleType
from typing import Any, Final

import wrapt
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]

_OFFICIAL: Final = "opentelemetry.instrumentation.genai.langchain"
_LIBRARY: Final = "langchain_core"
_GRAPHS: Final = "langgraph.pregel"
_CHATS: Final = "langchain_core.language_models.chat_models"
_BESIDE_GRAPHS: Final = ("langgraph.checkpoint", "langgraph.store", "langgraph.cache")

# Instrumentations of LangChain by others, each with its instrumentor.
_OTHERS: Final = {
    "opentelemetry.instrumentation.langchain": "LangchainInstrumentor",
    "openinference.instrumentation.langchain": "LangChainInstrumentor",
}

_logger = logging.getLogger("otel_llm_instrumentation")


class LangChainInstrumentor(BaseInstrumentor):  # type: ignore[misc]  # untyped
    """Turns the official instrumentor on as soon as the app imports LangChain; never imports it before.

    Does nothing if that is not installed, if the app has turned it on already, or if another one makes the spans.
    """

    _options: dict[str, Any] | None = None
    _official: Any = None
    _wrapper: object = None

    def instrumentation_dependencies(self) -> Collection[str]:
        return ()

    def _instrument(self, **kwargs: Any) -> None:
        if not _is_installed(_OFFICIAL):
            return
        self._options = kwargs
        if _LIBRARY in sys.modules and not _is_being_imported(_LIBRARY):
            self._turn_on()
        else:
            for module in (_LIBRARY, _GRAPHS, _CHATS):
                wrapt.register_post_import_hook(self._imported, module)

    def give_way_to(self, scope: str) -> None:
        """A span of ``scope`` starts: if that is another instrumentation of LangChain, one of the two is too many."""
        if scope in _OTHERS and self._official is not None:
            _logger.info("%s makes the spans of LangChain; the official instrumentation is silent now.", scope)
            self._uninstrument()

    def _uninstrument(self, **kwargs: Any) -> None:
        self._options = None
        official, self._official = self._official, None
        if official is None:
            return
        if _outermost() is self._wrapper:
            official.uninstrument()
        else:
            # It would take off the outermost wrapper, which is somebody else's. This silences its own.
            official._callback_handler._enabled = False
        self._wrapper = None

    def _imported(self, module: ModuleType) -> None:
        # LangGraph imports LangChain: then its own end is the time, since the official instrumentor imports it. What
        # comes without its graphs, such as its types, imports no chat models: they are the next to tell.
        if module.__name__ == _GRAPHS or not _is_being_imported("langgraph"):
            self._turn_on()

    def _turn_on(self) -> None:
        if self._options is None or self._official is not None or _another_is_on():
            return  # perhaps undone before the app imported the library; import hooks cannot be taken back
        if _is_initializing(sys.modules.get(_OFFICIAL)):
            return  # by who means to turn it on, or in another thread by ourselves
        try:
            official = importlib.import_module(_OFFICIAL).LangChainInstrumentor()
            if not _is_turned_on(official):
                self._have_it_instrument(official, self._options)
        except Exception:
            _logger.warning("LangChain is not instrumented; its calls are, by their clients.", exc_info=True)

    def _have_it_instrument(self, official: Any, options: dict[str, Any]) -> None:
        before = _outermost()
        self._official = official  # at once: what it imports may call us again
        try:
            # It asks for the package `langchain`, of which it needs nothing: LangGraph and models go without.
            official.instrument(skip_dep_check=not _is_installed("langchain"), **options)
        except Exception:
            self._official = None  # the next import may have better luck
            if _outermost() is not before:
                official._uninstrument()  # its `uninstrument` undoes only what came to its end
            raise
        self._wrapper = _outermost()


def _outermost() -> object:
    """What stands where instrumentations of LangChain put their callbacks in."""
    manager = sys.modules[f"{_LIBRARY}.callbacks"].BaseCallbackManager
    return vars(manager)["__init__"]


def _is_turned_on(official: Any) -> bool:
    """By the app, perhaps just now: it says so only when it has imported all that it instruments."""
    return bool(official.is_instrumented_by_opentelemetry) or getattr(official, "_callback_handler", None) is not None


def _another_is_on() -> bool:
    # The one instance there is: to ask the class for it may reset its options.
    instances = [getattr(getattr(sys.modules.get(name), of, None), "_instance", None) for name, of in _OTHERS.items()]
    return any(getattr(instance, "is_instrumented_by_opentelemetry", False) for instance in instances)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a parent
        return False


def _is_being_imported(package: str) -> bool:
    """Whether ``package`` or a module of it is in the middle of its import."""
    return any(_is_initializing(module) for name, module in sys.modules.copy().items() if _belongs_to(package, name))


def _is_initializing(module: ModuleType | None) -> bool:
    return getattr(getattr(module, "__spec__", None), "_initializing", False)


def _belongs_to(package: str, name: str) -> bool:
    # Distributions of their own, which may be imported without the graphs.
    return name.partition(".")[0] == package and not name.startswith(_BESIDE_GRAPHS)

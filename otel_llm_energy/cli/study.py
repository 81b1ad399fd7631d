"""``study``: collect a dataset of prompts and joules, import one, look at it, forecast from it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otel_llm_energy.cli import CommandError, missing_library, require_demo_extra, typed
from otel_llm_energy.cli.meter_options import named_meter
from otel_llm_energy.cli.metering import (
    insist_on_the_named_meter,
    learn_baseline,
    log_without,
    missing,
    status_once_discovered,
)
from otel_llm_energy.cli.model import MODEL_NAME, ModelError, ensure_model
from otel_llm_energy.cli.model_server import ModelServer, ServerOptions
from otel_llm_energy.cli.progress import can_be_redrawn, say
from otel_llm_energy.instrument import Instrumentation
from otel_llm_energy.status import Status
from otel_llm_energy.study import StudyError

if TYPE_CHECKING:
    from otel_llm_energy.study.collect import Progress
    from otel_llm_energy.study.plan import Plan

_SAY_SECONDS = 10.0


@contextmanager
def study_errors() -> Iterator[None]:
    """A study's errors, and a missing library, as the command's."""
    try:
        yield
    except StudyError as error:
        raise CommandError(str(error)) from error
    except ModuleNotFoundError as error:
        raise CommandError(f"{error.name} missing. Run: pip install 'otel-llm-energy[study]'") from error
    except OSError as error:
        what_to_do = missing_library(error)  # so ctypes says it
        if what_to_do is None:
            raise
        raise CommandError(what_to_do) from error


def distinct_folders(asked: argparse.Namespace) -> list[Path]:
    """The folders that were named, each once: its calls are no more evidence if two words name it."""
    found: dict[Path, Path] = {}
    for name in asked.folders:
        found.setdefault(Path(name).resolve(), Path(name))
    return list(found.values())


def run_collect(asked: argparse.Namespace) -> int:
    """Collect what has not been collected yet; 0 once every planned call has its row.

    Raises:
        CommandError: something is wrong with the prompts, the plan, a server or the disk.
    """
    with study_errors():
        from otel_llm_energy.study.collect import Options, collect

        plan, folder = _plan(asked), _folder(asked)
        with _embedded_servers(plan) as addresses, _shown_progress() as show, _before_calls(asked) as before_calls:
            options = Options(
                content=not asked.no_content,
                retry_failed=asked.retry_failed,
                addresses=addresses,
                energy=named_meter(asked),
            )
            progress = collect(plan, folder, options, before_calls=before_calls, on_progress=show)
    failed = f", {progress.failed} of them failures" if progress.failed else ""
    print(f"{folder}: {progress.done} of {progress.planned} calls, {progress.done_now} in this run{failed}.")
    if progress.unscored:
        say(f"Answers without a score: {progress.unscored}. The function failed; the column score_error says why.")
    if progress.done < progress.planned:
        raise CommandError(f"{progress.planned - progress.done} calls have no row yet. Run the same command again.")
    return 0


def _folder(asked: argparse.Namespace) -> Path:
    if asked.out is not None:
        return Path(asked.out)
    return Path(f"study-{Path(asked.prompts or asked.plan).stem}")


def _plan(asked: argparse.Namespace) -> Plan:
    """From the plan's file and the options; options win."""
    from otel_llm_energy.study.plan import make_plan, read_plan, with_changes

    changes = {key: getattr(asked, key) for key in _PLAN_OPTIONS if getattr(asked, key) is not None}
    if asked.prompts is not None:
        path = Path(asked.prompts)
        changes["prompts"] = str(path.resolve()) if path.exists() else asked.prompts
    if asked.base_url is None and (asked.model is not None or asked.api is not None):
        raise CommandError("--model and --api need --base-url: which server do they belong to?")
    if asked.base_url is not None or asked.plan is None:
        changes["servers"] = [_server(asked)]
    if asked.plan is not None:
        return with_changes(read_plan(Path(asked.plan)), **changes)
    if asked.prompts is None:
        raise CommandError("Name the prompts: a csv, jsonl, txt or Parquet file, or the built-in set: starter.")
    return make_plan(changes, "the options")


_PLAN_OPTIONS = (
    "repeats",
    "max_tokens",
    "warm_up",
    "seed",
    "temperature",
    "concurrency",
    "rest_seconds",
    "timeout_seconds",
    "order",
    "stream",
    "tokenize",
    "score",
)


def _server(asked: argparse.Namespace) -> dict[str, Any]:
    from otel_llm_energy.study.plan import EMBEDDED

    if asked.base_url is None:
        # Without its cache each call reads its whole prompt, whatever was asked before.
        return {"name": EMBEDDED, "base_url": EMBEDDED, "models": [MODEL_NAME], "extra": {"cache_prompt": False}}
    if not asked.model:
        raise CommandError("Name at least one model of that server: --model M.")
    api = {} if asked.api is None else {"api": asked.api}
    return {"base_url": asked.base_url, "models": asked.model, **api}


@contextmanager
def _embedded_servers(plan: Plan) -> Iterator[Mapping[str, str]]:
    """Our own model, for each server of the plan that is to be it; where they listen."""
    from otel_llm_energy.study.plan import EMBEDDED

    with ExitStack() as stack:
        addresses = {}
        for server in plan.servers:
            if server.base_url == EMBEDDED:
                require_demo_extra(["xllamacpp"])  # said before the model is fetched
                try:
                    options = ServerOptions(ensure_model(), slots=plan.concurrency)
                    addresses[server.name] = stack.enter_context(ModelServer(options)).base_url
                except ModelError as error:
                    raise CommandError(str(error)) from error
        yield addresses


@contextmanager
def _before_calls(asked: argparse.Namespace) -> Iterator[Callable[[Instrumentation], None]]:
    """What is done once measuring has begun: say what cannot be read, in one place, and wait for the idle power."""
    told: list[str] = []
    with ExitStack() as quiet_log:
        quiet_log.enter_context(log_without(told))

        def before_calls(energy: Instrumentation) -> None:
            status = status_once_discovered(energy.status)
            told.extend(one.message for one in missing(status))
            quiet_log.close()
            if named_meter(asked):
                insist_on_the_named_meter(status)
            _say_what_is_missing(status)
            if status.channels:
                learn_baseline(energy)  # joules above idle need it

        yield before_calls


def _say_what_is_missing(status: Status) -> None:
    for one in missing(status):
        say(f"{one.name}: {one.message}")
    if not status.channels:
        say(f"No meter can be read: rows will have no joules. `{typed('doctor')}` says what would mend that.")
    elif all(each.channel.estimated for each in status.channels):
        say("No power meter can be read: joules are estimates from CPU time, and say so.")


@contextmanager
def _shown_progress() -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal; elsewhere a line now and then."""
    if not can_be_redrawn():
        yield _Lines().show
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    with Bar(
        TextColumn("calls"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[facts]}"),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task("", total=None, facts="", visible=False)
        yield lambda progress: bar.update(
            task, total=progress.planned, completed=progress.done, facts=_facts(progress), visible=True
        )


class _Lines:
    """One line of progress at most every few seconds of asking."""

    def __init__(self) -> None:
        self._said_at = 0.0

    def show(self, progress: Progress) -> None:
        if progress.seconds - self._said_at >= _SAY_SECONDS:
            self._said_at = progress.seconds
            say(f"{progress.done} of {progress.planned} calls, {_facts(progress)}")


def _facts(progress: Progress) -> str:
    parts = [f"{'~' if progress.estimated else ''}{progress.joules:,.0f} J"]
    if progress.failed:
        parts.append(f"{progress.failed} failed")
    if progress.unscored:
        parts.append(f"{progress.unscored} not scored")
    if progress.rest_seconds is not None:
        minutes, seconds = divmod(round(progress.rest_seconds), 60)
        parts.append(f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d} to go")
    return ", ".join(parts)


def run_import(asked: argparse.Namespace) -> int:
    """Import MELODI's csv files; 0. Raises `CommandError`."""
    with study_errors():
        from otel_llm_energy.study.melodi import import_melodi

        count = import_melodi([Path(name) for name in asked.files], Path(asked.out), asked.machine)
    print(f"{asked.out}: {count} calls.")
    return 0


def run_report(asked: argparse.Namespace) -> int:
    """Write the report; 0. Raises `CommandError`."""
    with study_errors():
        from otel_llm_energy.study.journal import replace_file
        from otel_llm_energy.study.report import report

        folders = distinct_folders(asked)
        out = Path(asked.out) if asked.out else folders[0] / "report.html"
        page = report(folders)
        try:
            replace_file(out, page.encode())
        except OSError as error:
            raise CommandError(f"{out}: cannot be written: {error.strerror}.") from error
    print(f"{out}: open it in a browser; it needs no network.")
    return 0

"""Collecting: the plan's calls are made through `instrument`, and the enriched span of each becomes its row."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Tracer

from otel_llm_energy.instrument import Instrumentation, active_runtime, instrument
from otel_llm_energy.runtime import LAST_READING_SECONDS
from otel_llm_energy.settings import SettingError
from otel_llm_energy.study import StudyError
from otel_llm_energy.study.askers import Asker, Message, Request, make_asker
from otel_llm_energy.study.call_columns import CallColumns, error_words
from otel_llm_energy.study.dataset import SESSIONS, compact, holds_rows, scan
from otel_llm_energy.study.journal import Journal
from otel_llm_energy.study.manifest import check_same_study, write_manifest
from otel_llm_energy.study.plan import Job, Plan, PlannedCall, ServerPlan, calls_of, jobs
from otel_llm_energy.study.power import PowerLog
from otel_llm_energy.study.prompts import read_prompts
from otel_llm_energy.study.scores import scorer
from otel_llm_energy.study.sessions import Session
from otel_llm_energy.study.sink import RowSink

_LOOK_SECONDS: Final = 0.2
_INTERRUPTED_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class Options:
    """How a collection runs, beside its plan.

    Attributes:
        content: keep the texts of prompts and answers, not only their hashes.
        retry_failed: ask again what failed in an earlier run.
        addresses: by name, where a server listens in this run if not where the plan says.
        patience_seconds: so long a server that fails may be away before the collection stops.
        energy: keywords of `instrument`.
    """

    content: bool = True
    retry_failed: bool = False
    addresses: Mapping[str, str] = field(default_factory=dict)
    patience_seconds: float = 10.0
    energy: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a collection is.

    Attributes:
        planned: calls of the plan.
        done: rows there are, failures among them.
        done_now: of these, rows of this run.
        failed: rows of this run that are failures.
        joules: of the rows of this run.
        seconds: since the first call of this run.
        estimated: some of the joules are estimates.
        unscored: rows of this run whose answer the function that scores failed at.
    """

    planned: int
    done: int
    done_now: int
    failed: int
    joules: float
    seconds: float
    estimated: bool = False
    unscored: int = 0

    @property
    def rest_seconds(self) -> float | None:
        """Time that the others will take at this pace; ``None`` before the first."""
        return self.seconds / self.done_now * (self.planned - self.done) if self.done_now else None


@dataclass(frozen=True, slots=True)
class _Earlier:
    """A row that an earlier run left."""

    failed: bool
    attempt: int
    response: str | None


def collect(
    plan: Plan,
    folder: Path,
    options: Options | None = None,
    *,
    before_calls: Callable[[Instrumentation], None] = lambda energy: None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Make all calls of the plan that have no row in the folder yet.

    Args:
        plan: what to ask.
        folder: where the rows are, and go; made if it is not there.
        options: see `Options`.
        before_calls: told when measuring has begun; it may wait for the idle power to be learned.
        on_progress: told several times a second.

    Raises:
        StudyError: the plan cannot be followed, another one is in the folder, a server is gone, the disk is full.
    """
    options = options or Options()
    prompts = read_prompts(plan.prompts)
    score = scorer(plan.score or None, prompts.prompts)
    with Journal(folder) as journal, _disk_errors(folder):
        work = _Work(jobs(plan, prompts), _earlier_rows(folder), retry_failed=options.retry_failed)
        check_same_study(folder, plan, prompts)
        if not work.todo:
            compact(folder, journal)
            return Progress(work.planned, work.done, 0, 0, 0.0, 0.0)
        askers = {server.name: make_asker(_listening(server, options), plan) for server in plan.servers}
        write_manifest(folder, plan, prompts, askers, content=options.content)
        with _measuring(plan, options, journal) as pipeline:
            before_calls(pipeline.energy)
            columns = CallColumns(plan, askers, score, content=options.content)
            run = _Run(plan, options, work, askers, columns, pipeline, folder)
            progress = run.until_done(on_progress)
        compact(folder, journal)
    return progress


def _listening(server: ServerPlan, options: Options) -> ServerPlan:
    return replace(server, base_url=options.addresses.get(server.name, server.base_url))


class _Work:
    """What is still to be asked."""

    def __init__(self, plan_jobs: Sequence[Job], earlier: Mapping[str, _Earlier], *, retry_failed: bool) -> None:
        self.earlier = earlier
        self.planned = sum(len(job) for job in plan_jobs)
        self._retry_failed = retry_failed
        self.jobs = [job for job in plan_jobs if any(self.wanted(call) for call in job)]
        self.todo = sum(self.wanted(call) for call in calls_of(plan_jobs))
        self.done = self.planned - self.todo

    def wanted(self, call: PlannedCall) -> bool:
        """It has no row yet, or one of a failure that is to be tried again."""
        row = self.earlier.get(call.id)
        return row is None or (row.failed and self._retry_failed)

    def attempt(self, call: PlannedCall) -> int:
        row = self.earlier.get(call.id)
        return 1 if row is None else row.attempt + 1


def _earlier_rows(folder: Path) -> dict[str, _Earlier]:
    if not holds_rows(folder):
        return {}  # a new study
    rows = scan([folder]).select("call_id", "error_type", "attempt", "response", "conversation").collect()
    return {
        call_id: _Earlier(error_type is not None, attempt or 1, response if conversation else None)
        for call_id, error_type, attempt, response, conversation in rows.iter_rows()
    }


# Measuring


@dataclass(frozen=True, slots=True)
class _Pipeline:
    """The measured way of a call: its root span comes from the tracer, its row goes to the sink."""

    tracer: Tracer
    energy: Instrumentation
    sink: RowSink


@contextmanager
def _measuring(plan: Plan, options: Options, journal: Journal) -> Iterator[_Pipeline]:
    """The one line, with a tracer provider of the study's own, and its end."""
    provider = TracerProvider(sampler=ALWAYS_ON)
    servers = [_listening(server, options) for server in plan.servers]
    logs = {server.name: PowerLog() for server in servers}
    sink = RowSink(journal, logs, content=options.content)
    remote = {server.address: server.meter for server in servers if server.meter}
    given = {"detail": "full", **({"servers": remote} if remote else {}), **options.energy}
    try:
        energy = instrument(tracer_provider=provider, **given)
    except SettingError as error:
        raise StudyError(str(error)) from error
    try:
        runtime = active_runtime()
        if runtime is None:
            raise StudyError("OTEL_SDK_DISABLED=true switches measuring off. Unset it.")
        for server in servers:
            runtime.listen(server.host, server.port, logs[server.name].note)
        provider.add_span_processor(sink)
        yield _Pipeline(provider.get_tracer("otel-llm-energy study"), energy, sink)
    finally:
        energy.uninstrument()
        provider.shutdown()


# Asking


class _Run:
    """One run of a collection: workers that ask, and a watch over them."""

    def __init__(
        self,
        plan: Plan,
        options: Options,
        work: _Work,
        askers: Mapping[str, Asker],
        columns: CallColumns,
        pipeline: _Pipeline,
        folder: Path,
    ) -> None:
        self._plan = plan
        self._options = options
        self._work = work
        self._askers = askers
        self._columns = columns
        self._tracer = pipeline.tracer
        self._energy = pipeline.energy
        self._sink = pipeline.sink
        self._session = Session(folder / SESSIONS, pipeline.energy)
        self._queue = iter(work.jobs)
        self._queue_lock = threading.Lock()
        self._stop = threading.Event()
        self._gone: StudyError | None = None
        self._broken: BaseException | None = None
        self._started_seconds = time.monotonic()

    def until_done(self, on_progress: Callable[[Progress], None]) -> Progress:
        """Make all calls; the last state. Raises `StudyError` if they cannot be."""
        at_a_time = min(self._plan.concurrency, len(self._work.jobs))
        workers = [threading.Thread(target=self._work_off, daemon=True) for _ in range(at_a_time)]
        answer_seconds, row_seconds = self._plan.timeout_seconds, LAST_READING_SECONDS
        try:
            self._warm_up()
            self._started_seconds = time.monotonic()
            for worker in workers:
                worker.start()
            while any(worker.is_alive() for worker in workers):
                self._watch(on_progress)
        except BaseException:  # Ctrl-C: answers that are being written are not waited for; they are asked again
            answer_seconds, row_seconds = 0.0, _INTERRUPTED_SECONDS
            raise
        finally:
            self._stop.set()
            for worker in workers:
                if worker.ident is not None:
                    worker.join(answer_seconds)
            self._wait_for_rows(on_progress, row_seconds)
            self._session.write(ended=True)
        if self._broken is not None:
            raise self._broken
        if self._sink.failure is not None:
            raise self._sink.failure
        if self._gone is not None:
            raise self._gone
        return self.progress()

    def progress(self) -> Progress:
        """How far it is."""
        written = self._sink.written
        done_now = sum(written.values())
        return Progress(
            self._work.planned,
            self._work.done + done_now,
            done_now,
            written["failed"],
            self._sink.joules,
            time.monotonic() - self._started_seconds,
            self._sink.estimated,
            self._sink.unscored,
        )

    def _watch(self, on_progress: Callable[[Progress], None]) -> None:
        time.sleep(_LOOK_SECONDS)
        if self._sink.failure is not None:
            self._stop.set()
        self._session.write_now_and_then()
        on_progress(self.progress())

    def _wait_for_rows(self, on_progress: Callable[[Progress], None], at_most_seconds: float) -> None:
        """The reading that covers the last call comes a moment after it."""
        deadline_seconds = time.monotonic() + at_most_seconds
        while self._sink.waiting and time.monotonic() < deadline_seconds:
            self._watch(on_progress)
        if self._sink.waiting:
            self._energy.force_flush()
        on_progress(self.progress())

    def _warm_up(self) -> None:
        """Calls that make no rows, so that models are loaded; a prompt of the plan may be too long for one."""
        for server in self._plan.servers:
            for model in server.models:
                for _ in range(self._plan.warm_up):
                    request = self._request(model, [{"role": "user", "content": "Hello."}], min(self._plan.max_tokens))
                    try:
                        self._askers[server.name].ask(request, [])
                    except Exception as error:
                        raise StudyError(f"{server.base_url}: {model} does not answer: {error_words(error)}") from error

    def _work_off(self) -> None:
        try:
            while not self._stop.is_set():
                with self._queue_lock:
                    job = next(self._queue, None)
                if job is None:
                    return
                self._do(job)
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            self._broken = error
            self._stop.set()

    def _do(self, job: Job) -> None:
        """The turns of one conversation. Turns that have rows are not asked again, unless their answers are needed."""
        history: list[Message] = []
        last = max(index for index, call in enumerate(job) if self._work.wanted(call))
        for call in job[: last + 1]:
            if self._stop.is_set():
                return
            earlier = self._work.earlier.get(call.id)
            asked = {"role": "user", "content": call.prompt.text}
            if self._work.wanted(call):
                answer = self._ask(call, [*history, asked])
            elif earlier is not None and earlier.response is not None:
                answer = earlier.response
            else:
                answer = self._ask_again(call, [*history, asked])
            history += [asked, {"role": "assistant", "content": answer}]

    def _ask(self, call: PlannedCall, messages: Sequence[Message]) -> str:
        """Make a call and see to its row; the answer."""
        asker = self._askers[call.server.name]
        row = self._columns.planned(call, self._work.attempt(call))
        if not call.prompt.text.strip():
            self._sink.write({**row, "error_type": "empty_prompt", "error": "The prompt is empty; it was not asked."})
            return ""
        answer: list[str] = []
        failure: Exception | None = None
        with self._tracer.start_as_current_span("study call") as root:
            self._sink.expect(root.get_span_context().trace_id, row)
            try:
                asker.ask(self._request(call.model, messages, call.max_tokens), answer)
            except Exception as error:  # noqa: BLE001 - every failure is a row
                failure = error
            text = _text(answer)
            row |= self._columns.answered(call.prompt, text, failure)
        if failure is not None:
            self._see_whether_gone(asker)
        self._rest()
        return text

    def _ask_again(self, call: PlannedCall, messages: Sequence[Message]) -> str:
        """An earlier turn of which only the hash was kept; it makes no second row."""
        if not call.prompt.text.strip():
            return ""  # it was not asked then either
        answer: list[str] = []
        try:
            self._askers[call.server.name].ask(self._request(call.model, messages, call.max_tokens), answer)
        except Exception as error:
            raise StudyError(
                f"{call.server.base_url}: an earlier turn is not answered again: {error_words(error)}"
            ) from error
        self._rest()
        return _text(answer)

    def _rest(self) -> None:
        self._stop.wait(self._plan.rest_seconds)

    def _request(self, model: str, messages: Sequence[Message], max_tokens: int) -> Request:
        plan = self._plan
        return Request(model, messages, max_tokens, plan.temperature, plan.seed, plan.stream)

    def _see_whether_gone(self, asker: Asker) -> None:
        """A server that does not come back would only make a row of failure of every call that is left."""
        deadline_seconds = time.monotonic() + self._options.patience_seconds
        while not asker.alive():
            if time.monotonic() > deadline_seconds:
                self._gone = StudyError(
                    f"{asker.server.base_url}: the server is gone. All rows so far are kept. Start it and run the same "
                    "command again; with --retry-failed the failed calls are asked again, too."
                )
                self._stop.set()
                return
            if self._stop.wait(1.0):
                return


def _text(answer: Sequence[str]) -> str:
    """All pieces; halves of a character that came in two are joined, and one without its other is U+FFFD."""
    return "".join(answer).encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """A disk that is full, or a folder that is gone, in words."""
    try:
        yield
    except OSError as error:
        raise StudyError(
            f"{folder}: {error.strerror or error}. All rows so far are whole. Make room and run the same command again."
        ) from error

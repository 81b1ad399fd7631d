"""Collecting: the plan's calls are made through `instrument`, and the enriched span of each becomes its row."""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import psutil
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Tracer

from otel_llm_energy import conventions
from otel_llm_energy.instrument import Instrumentation, instrument
from otel_llm_energy.quantities import NJ_PER_JOULE, NS_PER_SECOND
from otel_llm_energy.settings import SettingError, settings
from otel_llm_energy.study import StudyError
from otel_llm_energy.study.askers import Asker, Message, Request, make_asker
from otel_llm_energy.study.dataset import MANIFEST, SESSIONS, compact, read_manifest, scan
from otel_llm_energy.study.features import prompt_features
from otel_llm_energy.study.journal import ROWS, Journal, replace_file
from otel_llm_energy.study.plan import Job, Plan, PlannedCall, ServerPlan, jobs
from otel_llm_energy.study.power import PowerLog, recorded_meters
from otel_llm_energy.study.prompts import Prompt, PromptSet, read_prompts, sha256_of
from otel_llm_energy.study.rows import span_columns
from otel_llm_energy.study.scores import Score, scorer
from otel_llm_instrumentation import semconv

_FORMAT: Final = 1
_LOOK_SECONDS: Final = 0.2
_SESSION_SECONDS: Final = 10.0
_LAST_READING_SECONDS: Final = 12.0
_ERROR_CHARACTERS: Final = 500
_DRAWN_CALLS: Final = 50  # of each deployment: the power of so many is kept


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
    """

    planned: int
    done: int
    done_now: int
    failed: int
    joules: float
    seconds: float

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
        _check_same_study(folder, plan, prompts)
        if not work.todo:
            compact(folder, journal)
            return Progress(work.planned, work.done, 0, 0, 0.0, 0.0)
        askers = {server.name: make_asker(_listening(server, options), plan) for server in plan.servers}
        _write_manifest(folder, plan, prompts, askers, options)
        log = PowerLog()
        with _measuring(plan, options, log) as (tracer, energy, sink_to):
            sink = _RowSink(journal, log, content=options.content)
            sink_to(sink)
            before_calls(energy)
            run = _Run(plan, options, work, askers, score, tracer, energy, sink, folder)
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
        self.ids = {call.id for job in plan_jobs for call in job}
        self._retry_failed = retry_failed
        self.jobs = [job for job in plan_jobs if any(self.wanted(call) for call in job)]
        self.todo = sum(self.wanted(call) for job in plan_jobs for call in job)
        self.done = self.planned - self.todo

    def wanted(self, call: PlannedCall) -> bool:
        """It has no row yet, or one of a failure that is to be tried again."""
        row = self.earlier.get(call.id)
        return row is None or (row.failed and self._retry_failed)

    def attempt(self, call: PlannedCall) -> int:
        row = self.earlier.get(call.id)
        return 1 if row is None else row.attempt + 1


def _earlier_rows(folder: Path) -> dict[str, _Earlier]:
    try:
        table = scan([folder])
    except StudyError:
        return {}  # a new study
    rows = table.select("call_id", "error_type", "attempt", "response", "conversation").collect()
    return {
        call_id: _Earlier(error_type is not None, attempt or 1, response if conversation else None)
        for call_id, error_type, attempt, response, conversation in rows.iter_rows()
    }


# Measuring


@contextmanager
def _measuring(
    plan: Plan, options: Options, log: PowerLog
) -> Iterator[tuple[Tracer, Instrumentation, Callable[[SpanProcessor], None]]]:
    """The one line, with a tracer provider of the study's own, and its end."""
    provider = TracerProvider(sampler=ALWAYS_ON)
    remote = {server.address: server.meter for server in plan.servers if server.meter}
    given = {"detail": "full", **({"servers": remote} if remote else {}), **options.energy}
    try:
        given["meters"] = recorded_meters(settings(**given), log)
        energy = instrument(tracer_provider=provider, **given)
    except SettingError as error:
        raise StudyError(str(error)) from error
    try:
        if not energy.active:
            raise StudyError("OTEL_SDK_DISABLED=true switches measuring off. Unset it.")
        yield provider.get_tracer("otel-llm-energy study"), energy, provider.add_span_processor
    finally:
        energy.uninstrument()
        provider.shutdown()


class _RowSink(SpanProcessor):
    """Turns the enriched spans of each call into its row, and keeps it.

    A call is a root span of the study with the client library's span below. The root comes last: it waits for the
    energy of what is below it.
    """

    def __init__(self, journal: Journal, log: PowerLog, *, content: bool) -> None:
        self.written = Counter[str]()
        self.joules = 0.0
        self.failure: OSError | None = None
        self._journal = journal
        self._log = log
        self._content = content
        self._lock = threading.Lock()
        self._expected: dict[int, _Pending] = {}
        self._drawn = Counter[str]()

    def expect(self, trace_id: int, row: dict[str, Any]) -> None:
        """The spans of this trace belong to this row."""
        with self._lock:
            self._expected[trace_id] = _Pending(row, time.monotonic_ns())

    @property
    def waiting(self) -> bool:
        """Some rows are not complete yet."""
        with self._lock:
            return bool(self._expected)

    def on_end(self, span: ReadableSpan) -> None:
        context = span.get_span_context()
        trace_id = context.trace_id if context else 0
        with self._lock:
            pending = self._expected.get(trace_id)
        if pending is None:
            return
        if span.parent is None:
            self._add_power(pending)
            self.write(pending.row)
            with self._lock:  # who waits for the rows waits until they are kept
                del self._expected[trace_id]
        elif semconv.OPERATION_NAME in (span.attributes or {}):
            start_ns, end_ns = span.start_time or 0, span.end_time or 0
            pending.row |= span_columns(span.attributes or {}, content=self._content)
            pending.row |= {"started_at": start_ns / NS_PER_SECOND, "seconds": (end_ns - start_ns) / NS_PER_SECOND}

    def write(self, row: Mapping[str, Any]) -> None:
        """Keep a row; a full disk stops the collection, with all earlier rows whole."""
        try:
            self._journal.append(row)
        except OSError as error:
            self.failure = self.failure or error
            return
        with self._lock:
            self.written["failed" if row["error_type"] else "answered"] += 1
            self.joules += row.get(conventions.JOULES) or 0.0

    def _add_power(self, pending: _Pending) -> None:
        deployment = pending.row["deployment"]
        with self._lock:
            self._drawn[deployment] += 1
            if self._drawn[deployment] > _DRAWN_CALLS:
                return
        length_ns = int(pending.row.get("seconds", 0.0) * NS_PER_SECOND)
        seconds, watts = self._log.watts(pending.started_ns, pending.started_ns + length_ns)
        if seconds:
            pending.row |= {"power_seconds": seconds, "power_watts": watts}


@dataclass(slots=True)
class _Pending:
    row: dict[str, Any]
    started_ns: int


# Asking


class _Run:
    """One run of a collection: workers that ask, and a watch over them."""

    def __init__(
        self,
        plan: Plan,
        options: Options,
        work: _Work,
        askers: Mapping[str, Asker],
        score: Score,
        tracer: Tracer,
        energy: Instrumentation,
        sink: _RowSink,
        folder: Path,
    ) -> None:
        self._plan = plan
        self._options = options
        self._work = work
        self._askers = askers
        self._score = score
        self._tracer = tracer
        self._energy = energy
        self._sink = sink
        self._session = _Session(folder / SESSIONS, energy)
        self._common = client_facts()
        self._server_facts = {
            (server.name, model): askers[server.name].facts(model) for server in plan.servers for model in server.models
        }
        self._queue = iter(work.jobs)
        self._queue_lock = threading.Lock()
        self._stop = threading.Event()
        self._gone: StudyError | None = None
        self._broken: BaseException | None = None
        self._started = time.monotonic()

    def until_done(self, on_progress: Callable[[Progress], None]) -> Progress:
        """Make all calls; the last state. Raises `StudyError` if they cannot be."""
        workers = [threading.Thread(target=self._work_off, daemon=True) for _ in range(self._plan.concurrency)]
        try:
            self._warm_up()
            self._started = time.monotonic()
            for worker in workers:
                worker.start()
            while any(worker.is_alive() for worker in workers):
                self._watch(on_progress)
        finally:
            self._stop.set()
            for worker in workers:
                if worker.ident is not None:
                    worker.join(timeout=self._plan.timeout_seconds if self._broken is None else 0)
            self._wait_for_rows(on_progress)
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
            time.monotonic() - self._started,
        )

    def _watch(self, on_progress: Callable[[Progress], None]) -> None:
        time.sleep(_LOOK_SECONDS)
        if self._sink.failure is not None:
            self._stop.set()
        self._session.write_now_and_then()
        on_progress(self.progress())

    def _wait_for_rows(self, on_progress: Callable[[Progress], None]) -> None:
        """The reading that covers the last call comes a moment after it."""
        deadline = time.monotonic() + _LAST_READING_SECONDS
        while self._sink.waiting and time.monotonic() < deadline:
            self._watch(on_progress)
        if self._sink.waiting:
            self._energy.force_flush()
        on_progress(self.progress())

    def _warm_up(self) -> None:
        """Calls that make no rows: models are loaded, caches are filled."""
        text = self._work.jobs[0][0].prompt.text or "Hello."
        for server in self._plan.servers:
            for model in server.models:
                for _ in range(self._plan.warm_up):
                    request = self._request(model, [{"role": "user", "content": text}], min(self._plan.max_tokens))
                    try:
                        self._askers[server.name].ask(request, [])
                    except Exception as error:
                        raise StudyError(f"{server.base_url}: {model} does not answer: {_words(error)}") from error

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
        row = self._planned_columns(call, asker)
        if not call.prompt.text.strip():
            self._sink.write({**row, "error_type": "empty_prompt", "error": "The prompt is empty; it was not asked."})
            return ""
        answer: list[str] = []
        with self._tracer.start_as_current_span("study call") as root:
            self._sink.expect(root.get_span_context().trace_id, row)
            try:
                asker.ask(self._request(call.model, messages, call.max_tokens), answer)
            except Exception as error:  # noqa: BLE001 - every failure is a row
                row["error_type"] = type(error).__qualname__
                if self._options.content:  # a server may quote the prompt
                    row["error"] = _words(error)
            text = "".join(answer)
            row |= self._answer_columns(call.prompt, text, failed=row["error_type"] is not None)
        if row["error_type"] is not None:
            self._see_whether_gone(asker)
        self._rest()
        return text

    def _ask_again(self, call: PlannedCall, messages: Sequence[Message]) -> str:
        """An earlier turn of which only the hash was kept; it makes no second row."""
        answer: list[str] = []
        try:
            self._askers[call.server.name].ask(self._request(call.model, messages, call.max_tokens), answer)
        except Exception as error:
            raise StudyError(
                f"{call.server.base_url}: an earlier turn is not answered again: {_words(error)}"
            ) from error
        self._rest()
        return "".join(answer)

    def _rest(self) -> None:
        self._stop.wait(self._plan.rest_seconds)

    def _request(self, model: str, messages: Sequence[Message], max_tokens: int) -> Request:
        plan = self._plan
        return Request(model, messages, max_tokens, plan.temperature, plan.seed, plan.stream)

    def _see_whether_gone(self, asker: Asker) -> None:
        """A server that does not come back would only make a row of failure of every call that is left."""
        deadline = time.monotonic() + self._options.patience_seconds
        while not asker.alive():
            if time.monotonic() > deadline:
                self._gone = StudyError(
                    f"{asker.server.base_url}: the server is gone. All rows so far are kept. Start it and run the same "
                    "command again; with --retry-failed the failed calls are asked again, too."
                )
                self._stop.set()
                return
            if self._stop.wait(1.0):
                return

    def _planned_columns(self, call: PlannedCall, asker: Asker) -> dict[str, Any]:
        prompt = call.prompt
        row: dict[str, Any] = {
            "call_id": call.id,
            "attempt": self._work.attempt(call),
            "source": "study",
            "position": call.position,
            "deployment": call.deployment,
            "server": call.server.name,
            "machine": call.server.machine or self._common["client_cpu"],
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
            **self._common,
            **self._server_facts[call.server.name, call.model],
        }
        if self._options.content:
            row["prompt"] = prompt.text
        if self._plan.tokenize:
            row["prompt_tokens"] = asker.count_tokens(call.model, prompt.text)
        return row

    def _answer_columns(self, prompt: Prompt, answer: str, *, failed: bool) -> dict[str, Any]:
        row: dict[str, Any] = {"response_sha256": sha256_of(answer), "response_characters": len(answer)}
        if self._options.content:
            row["response"] = answer
        if not failed:
            try:
                row["score"] = self._score(prompt, answer)
            except Exception as error:  # noqa: BLE001 - the user's function; the call's energy is known all the same
                row["score_error"] = _words(error) if self._options.content else type(error).__qualname__
        return row


def _words(error: BaseException) -> str:
    return str(error)[:_ERROR_CHARACTERS] or type(error).__qualname__


# What is known of a study beside its rows


class _Session:
    """What the meters counted in one run, rewritten now and then so that it outlives a kill."""

    def __init__(self, folder: Path, energy: Instrumentation) -> None:
        self._started_at = time.time()
        self._path = folder / f"{self._started_at:.0f}-{os.getpid()}.json"
        self._energy = energy
        self._written = time.monotonic()
        folder.mkdir(exist_ok=True)

    def write_now_and_then(self) -> None:
        if time.monotonic() - self._written >= _SESSION_SECONDS:
            self._written = time.monotonic()
            self.write()

    def write(self, *, ended: bool = False) -> None:
        now = time.time()
        status = self._energy.status()
        content = {
            "started_at": self._started_at,
            "seconds": now - self._started_at,
            "ended": ended,
            "meters": [
                {
                    "meter": each.channel.meter,
                    "channel": each.channel.id,
                    "component": each.channel.component,
                    "estimated": each.channel.estimated,
                    "idle_watts": each.idle_watts,
                    "metered_joules": each.balance.metered_nj / NJ_PER_JOULE,
                    "attributed_joules": each.balance.billed_nj / NJ_PER_JOULE,
                    "unattributed_joules": {
                        reason: energy_nj / NJ_PER_JOULE for reason, energy_nj in each.balance.unattributed_nj.items()
                    },
                }
                for each in status.channels
            ],
            "left_out": [{"name": one.name, "reason": one.reason, "message": one.message} for one in status.left_out],
        }
        replace_file(self._path, json.dumps(content, indent=1).encode())


def client_facts() -> dict[str, Any]:
    """Hardware and software of this machine, as columns of a row."""
    return {
        "client_cpu": _cpu_name(),
        "client_cpus": os.cpu_count(),
        "client_memory_bytes": psutil.virtual_memory().total,
        "client_system": platform.platform(),
        "client_python": platform.python_version(),
        "client_package": version("otel-llm-energy"),
    }


def _cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _check_same_study(folder: Path, plan: Plan, prompts: PromptSet) -> None:
    manifest = read_manifest(folder)
    if manifest is None:
        if (folder / ROWS).stat().st_size:
            raise StudyError(f"{folder}: there are rows but no {MANIFEST}. Choose another folder with --out.")
        return
    if manifest.get("plan_digest") != plan.digest:
        differing = [key for key, value in plan.as_dict().items() if manifest["plan"].get(key) != _plain(value)]
        raise StudyError(
            f"{folder}: it holds a study with another plan ({', '.join(differing) or 'servers'} differ). "
            "Choose another folder with --out."
        )
    if manifest.get("prompts", {}).get("sha256") != prompts.sha256:
        raise StudyError(
            f"{folder}: {plan.prompts} has changed since the study began. Choose another folder with --out."
        )


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _write_manifest(
    folder: Path, plan: Plan, prompts: PromptSet, askers: Mapping[str, Asker], options: Options
) -> None:
    """All that is needed to do it again: ``study collect --plan manifest.json``."""
    if (folder / MANIFEST).exists():
        return
    manifest = {
        "format": _FORMAT,
        "created_at": time.time(),
        "plan": plan.as_dict(),
        "plan_digest": plan.digest,
        "prompts": {"source": prompts.source, "sha256": prompts.sha256, "count": len(prompts.prompts)},
        "content": options.content,
        "client": client_facts(),
        "packages": {name: version(name) for name in ("openai", "opentelemetry-sdk", "polars", "textstat")},
        "servers": {
            f"{name} {model}": asker.facts(model) for name, asker in askers.items() for model in asker.server.models
        },
    }
    replace_file(folder / MANIFEST, json.dumps(manifest, indent=1).encode())


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """A disk that is full, or a folder that is gone, in words."""
    try:
        yield
    except OSError as error:
        raise StudyError(
            f"{folder}: {error.strerror or error}. All rows so far are whole. Make room and run the same command again."
        ) from error

"""Small programs whose end, fork or global state is what is tested: each runs in a process of its own.

``python -m tests.tracing.children NAME`` runs the function of that name.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from opentelemetry import trace
from opentelemetry.sdk.trace import ConcurrentMultiSpanProcessor, ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult

from otel_llm_energy import conventions
from otel_llm_energy.host.folder import Folder
from otel_llm_energy.host.turns import newest
from otel_llm_energy.ledger.ledger import Ledger
from otel_llm_energy.tracing.books import Books
from otel_llm_energy.tracing.claims import Claim
from otel_llm_energy.tracing.gate import Gate
from otel_llm_energy.tracing.joint import CannotJoinError, Joint
from otel_llm_energy.tracing.seat import Seat
from tests.support.waiting import until
from tests.tracing.fakes import Collecting, FakeDesk


def run_child(name: str) -> list[str]:
    """Run one of the programs below to its end; its lines of output. It must exit cleanly, with nothing on stderr."""
    root = Path(__file__).parents[2]
    result = subprocess.run(
        # Python 3.12 and later warn of any fork while threads run; that is what is tested.
        [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-m", "tests.tracing.children", name],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    return result.stdout.splitlines()


def say(line: str) -> None:
    """A line is one write, so that two processes do not mix."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


class Printing(SpanExporter):
    """Prints what is exported."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        for span in spans:
            say(described(span))
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        say("exporter shut down")


def described(span: ReadableSpan) -> str:
    """Name, own joules or quality, and subtree total."""
    attributes = span.attributes or {}
    shown = (conventions.JOULES, conventions.REASON, conventions.SUBTREE_JOULES)
    return " ".join([span.name, *(str(attributes[key]) for key in shown if key in attributes)])


def joined(provider: TracerProvider) -> tuple[Gate, FakeDesk]:
    """A gate and its desk before a provider; forced, the desk knows half a joule."""
    desk = FakeDesk(forced_joules=0.5)
    joint = Joint(provider, lambda downstream: Gate(downstream, desk))
    desk.listeners.append(joint.gate)
    return joint.gate, desk


def hold_one(provider: TracerProvider, gate: Gate, name: str = "chat") -> Claim:
    """A call below an agent's span, both ended and held."""
    tracer = provider.get_tracer("app")
    with tracer.start_as_current_span(f"agent of {name}"), tracer.start_as_current_span(name) as span:
        claim = Claim(span.get_span_context())
        gate.bind(span, claim)
    return claim


def exit_with_batch() -> None:
    """The interpreter exits with spans held before a batch processor, and nobody shuts anything down."""
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Printing()))
    gate, _ = joined(provider)
    hold_one(provider, gate)


def exit_with_pool() -> None:
    """The same with the concurrent multi processor, whose pool is shut before any atexit hook."""
    provider = TracerProvider(active_span_processor=ConcurrentMultiSpanProcessor())
    provider.add_span_processor(BatchSpanProcessor(Printing()))
    gate, _ = joined(provider)
    hold_one(provider, gate)


def exit_before_the_thread_started() -> None:
    """A first call in an atexit hook: no thread can be started any more on some Pythons."""
    import atexit

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Printing()))
    gate, _ = joined(provider)
    atexit.register(lambda: hold_one(provider, gate))


def exit_with_a_late_call() -> None:
    """The app's own exit hook makes a call; ours, which is younger, has run by then. Asked for, there is a reading."""
    import atexit

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(Printing()))
    gate, desk = joined(provider)

    def call_late() -> None:
        with provider.get_tracer("app").start_as_current_span("late") as span:
            claim = Claim(span.get_span_context())
            gate.bind(span, claim)
            desk.on_hasten = lambda: desk.settle(claim, 2.0)

    atexit.register(call_late)
    hold_one(provider, gate)


def fork_while_held() -> None:
    """A fork with spans held: the parent exports them, the child its own, and neither hangs."""
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Printing()))
    gate, desk = joined(provider)
    tracer = provider.get_tracer("app")
    with tracer.start_as_current_span("root"):
        claim = hold_one(provider, gate, "before")
        gate.tick()  # enters what was noted: only now are the spans held
        child = os.fork()
        mine = "child" if child == 0 else "parent"
        inner = hold_one(provider, gate, mine)
    desk.settle(inner, 2.0)
    if child == 0:
        desk.settle(claim, 9.0)
        provider.force_flush()
        os._exit(0)
    os.waitpid(child, 0)
    desk.settle(claim, 1.0)
    provider.force_flush()


def fork_in_the_middle_of_our_work() -> None:
    """Another thread is inside the mailbox at the fork: the child must not wait for it."""
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Printing()))
    gate, desk = joined(provider)
    entered, leave = threading.Event(), threading.Event()

    def work() -> None:
        entered.set()
        leave.wait(30)

    worker = threading.Thread(target=gate._mailbox.post, args=(work,))
    worker.start()
    entered.wait(30)
    child = os.fork()
    if child == 0:
        desk.settle(hold_one(provider, gate, "child"), 2.0)
        provider.force_flush()
        os._exit(0)
    os.waitpid(child, 0)
    leave.set()
    worker.join()


def worker_of_multiprocessing() -> None:
    """Forked workers, one after the other, end with spans held: their interpreters run no exit hook."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(Printing()))
    gate, _ = joined(provider)
    hold_one(provider, gate, "before")
    for name in ("first", "second"):
        worker = multiprocessing.get_context("fork").Process(target=hold_one, args=(provider, gate, name))
        worker.start()
        worker.join(30)


def logfire_twice() -> None:
    """Join logfire, configure it a second time, notice, and join again."""
    import logfire

    joint: Joint | None = None
    for name in ("first", "second"):
        out, desk = Collecting(), FakeDesk()
        logfire.configure(send_to_logfire=False, console=False, metrics=False, additional_span_processors=[out])
        provider = trace.get_tracer_provider()
        if joint is not None and not joint.joins(provider):
            say("lost by the second configure()")
        joint = Joint(provider, lambda downstream, desk=desk: Gate(downstream, desk))  # type: ignore[misc]
        desk.listeners.append(joint.gate)
        with logfire.span("agent"), trace.get_tracer("client").start_as_current_span("chat") as span:
            claim = Claim(span.get_span_context())
            assert joint.gate.bind(span, claim)
        desk.settle(claim, 2.0)
        joint.gate.force_flush()
        shown = [described(span) for span in out.spans if len(described(span).split()) > 1]
        say(f"{name}: {', '.join(shown)}")


def fastapi_sets_up_tracing_at_start() -> None:
    """Tracers are made at import, tracing is set up when the app starts, and a processor comes after us."""
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    tracer = trace.get_tracer("made at import")
    out, desk, gates = Collecting(), FakeDesk(), []

    def join() -> None:
        try:
            joint = Joint(trace.get_tracer_provider(), lambda downstream: Gate(downstream, desk))
        except CannotJoinError as error:
            say(error.reason)
        else:
            desk.listeners.append(joint.gate)
            gates.append(joint.gate)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        join()
        provider = TracerProvider()
        trace.set_tracer_provider(provider)
        join()
        provider.add_span_processor(out)
        yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/ask")
    async def ask() -> str:
        with tracer.start_as_current_span("agent"):
            with tracer.start_as_current_span("chat") as span:
                claim = Claim(span.get_span_context())
                gates[0].bind(span, claim)
            await asyncio.sleep(0)
        desk.settle(claim, 2.0)
        return "answer"

    with TestClient(app) as client:
        say(client.get("/ask").json())
    gates[0].force_flush()
    for span in out.spans:
        if span.name in ("chat", "agent"):  # FastAPI adds spans of its own
            say(described(span))


def _settle(books: Books) -> None:
    books.settle()


def daemons_files_have_the_numbers_of_a_board() -> None:
    """A holder and a member, and then an app's socket in the place of each descriptor; both must find each other again.

    A daemon that is made after `instrument()`, as under ``otel-llm-energy run``, closes all and opens files of its own.
    """
    from tests.tracing.test_seat import Meters, rules_in

    with tempfile.TemporaryDirectory() as folder:
        rules = rules_in(Path(folder))
        books = [Books(Ledger(0)) for _ in range(2)]
        seats = [Seat(rules, Meters(each), Ledger, partial(_settle, each), lambda: True) for each in books]

        def share() -> bool:
            return sorted((seat.status.role, seat.status.members) for seat in seats) == [("holder", 1), ("member", 0)]

        for seat in seats:
            seat.start()
        until(share)
        numbers = [int(each.name) for each in Path("/proc/self/fd").iterdir() if int(each.name) > 2]
        apps, far = socket.socketpair()
        far.sendall(b"to the app")
        for number in numbers:
            os.dup2(apps.fileno(), number)
        board = Folder(rules.folder)
        until(lambda: newest(board, rules.board) > 1 and share())
        for seat in seats:
            seat.stop()
        say(str(all(os.path.sameopenfile(number, apps.fileno()) for number in numbers)))
        far.setblocking(False)
        try:
            say(str(far.recv(1000)))
        except BlockingIOError:
            say(str(apps.recv(1000)))


if __name__ == "__main__":
    globals()[sys.argv[1]]()

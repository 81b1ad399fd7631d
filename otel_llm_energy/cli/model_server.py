"""A real llama.cpp server on loopback as a process of its own, so that its CPU time is not the client's.

``python -m otel_llm_energy.cli.model_server --model PATH`` prints its base URL as one line when it is ready and
serves until SIGTERM, SIGINT or, if its standard input is a pipe, that pipe's end: it does not outlive its parent.
Needs the ``demo`` extra (xllamacpp).
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from types import FrameType, TracebackType
from typing import Any, NoReturn

from otel_llm_energy.cli import missing_library
from otel_llm_energy.cli.model import MODEL_NAME, ModelError

_START_SECONDS = 60
_STOP_SECONDS = 10


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How the server runs.

    Attributes:
        model: path of a GGUF file.
        slots: how many requests are worked on at a time; the others queue.
        threads: for decode. As many as there are free cores, or more, and OpenMP's spinning slows it 50 times.
        batch_threads: for prefill; ``None`` for as many as ``threads``.
        context_tokens: of each slot.
        port: 0 for a free one.
        embeddings: answer ``/v1/embeddings`` too.
    """

    model: Path
    slots: int = 1
    threads: int = 1
    batch_threads: int | None = None
    context_tokens: int = 2048
    port: int = 0
    embeddings: bool = False


class ModelServer:
    """The server as a child process; a context manager.

    Attributes:
        base_url: such as ``"http://127.0.0.1:44999/v1"``; for an OpenAI client. Set once started.
        options: as given.
    """

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self.base_url = ""
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        """The server's process id. Raises `ModelError` if it was not started."""
        if self._process is None:
            raise ModelError("The model server is not started.")
        return self._process.pid

    def start(self) -> ModelServer:
        """Start it and wait until it answers. Raises `ModelError` if it ends instead, or takes over a minute."""
        command = [sys.executable, "-m", __spec__.name, *_arguments(self.options)]
        # A session of its own: Ctrl-C is for the parent, which then ends the server in its own time.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            self.base_url = self._announced_address() + "/v1"
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End it; harmless if it has ended."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    def _announced_address(self) -> str:
        """The line that the child prints once it is ready."""
        process = self._process
        assert process is not None
        assert process.stdout is not None
        line = _first_line(process)
        if not line.startswith("http://"):
            raise ModelError(f"The model server did not start (exit code {_exit_code(process)}); its words are above.")
        return line

    def __enter__(self) -> ModelServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _first_line(process: subprocess.Popen[str]) -> str:
    """The child's first line, or nothing if it ends, or is killed for taking too long."""
    assert process.stdout is not None
    watchdog = Timer(_START_SECONDS, process.kill)
    watchdog.daemon = True
    watchdog.start()
    try:
        return process.stdout.readline().strip()
    finally:
        watchdog.cancel()


def _exit_code(process: subprocess.Popen[str]) -> int | None:
    """Of a child whose output has ended: it ends itself a moment later. ``None`` if it does not."""
    try:
        return process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        return None


def _arguments(options: ServerOptions) -> list[str]:
    values: dict[str, object] = {
        "--model": options.model,
        "--slots": options.slots,
        "--threads": options.threads,
        "--batch-threads": options.batch_threads or options.threads,
        "--context-tokens": options.context_tokens,
        "--port": options.port,
    }
    flags = ["--embeddings"] if options.embeddings else []
    return [str(word) for pair in values.items() for word in pair] + flags


def _parse(arguments: list[str] | None) -> ServerOptions:
    parser = argparse.ArgumentParser(
        prog="otel_llm_energy.cli.model_server",
        description=__doc__,
        argument_default=argparse.SUPPRESS,  # the defaults are those of ServerOptions
    )
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file")
    parser.add_argument("--slots", type=int, help="requests worked on at a time")
    parser.add_argument("--threads", type=int, help="threads of decode")
    parser.add_argument("--batch-threads", type=int, help="threads of prefill; as many as of decode if left out")
    parser.add_argument("--context-tokens", type=int, help="of each slot")
    parser.add_argument("--port", type=int, help="0 for a free one")
    parser.add_argument("--embeddings", action="store_true", help="answer /v1/embeddings too")
    return ServerOptions(**vars(parser.parse_args(arguments)))


def _serve(options: ServerOptions) -> Any:
    """Load the model and serve it from llama.cpp's own threads, for as long as the returned object lives."""
    xllamacpp = importlib.import_module("xllamacpp")  # it has no type stubs

    params = xllamacpp.CommonParams()
    params.model.path = str(options.model)
    params.model_alias = {MODEL_NAME}
    params.n_parallel = options.slots
    params.n_ctx = options.context_tokens * options.slots
    params.cpuparams.n_threads = options.threads
    params.cpuparams_batch.n_threads = options.batch_threads or options.threads
    params.hostnames = ["127.0.0.1"]
    params.port = options.port
    params.endpoint_metrics = True
    params.endpoint_slots = True
    params.ui = False
    params.verbosity = 0
    if options.embeddings:
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    return xllamacpp.Server(params)


def _wait_for_the_end() -> None:
    """Until a signal, or, where standard input is a pipe, until its other end is closed."""
    if stat.S_ISFIFO(os.fstat(0).st_mode):
        while os.read(0, 4096):
            pass
        return
    while True:
        signal.pause()


def _end(signal_number: int, frame: FrameType | None) -> None:
    _leave()


def _leave() -> NoReturn:
    """End at once: llama.cpp's own way to an end waits for the answers that are being written."""
    os._exit(0)


def main(arguments: list[str] | None = None) -> int:
    """Serve until told to end, which ends the process with 0; returns 1 if the server cannot start."""
    options = _parse(arguments)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    if not options.model.is_file():
        print(f"{options.model}: no such model file.", file=sys.stderr)
        return 1
    try:
        server = _serve(options)
    except ImportError as err:
        print(missing_library(err) or f"{err}. Run: pip install 'otel-llm-energy[demo]'", file=sys.stderr)
        return 1
    except RuntimeError as err:
        print(f"{options.model}: llama.cpp does not serve it; is it a whole GGUF file? ({err})", file=sys.stderr)
        return 1
    print(server.listening_address, flush=True)
    _wait_for_the_end()
    _leave()


if __name__ == "__main__":
    sys.exit(main())

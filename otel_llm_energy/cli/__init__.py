"""The command ``otel-llm-energy``: see it work, run a script with it, find out why it does not measure."""

from __future__ import annotations

import argparse
import errno
import importlib.util
import io
import os
import select
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from otel_llm_energy.cli.meter_options import add_meter_options, named_meter
from otel_llm_energy.cli.study_options import Commands, add_study
from otel_llm_energy.version import __version__

PROGRAM = "otel-llm-energy"
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 + SIGINT."""
UNREAD = 141
"""Exit code where nobody reads what is printed any more (``| head``), as shells have it: 128 + SIGPIPE."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class CommandError(Exception):
    """The command cannot go on: what failed and what to do, for the terminal."""


def require_demo_extra(modules: Sequence[str]) -> None:
    """Raises `CommandError` if some of these, which that extra brings, are not there."""
    lacking = [name for name in modules if importlib.util.find_spec(name) is None]
    if lacking:
        raise CommandError(f"{' and '.join(lacking)} missing. Run: pip install 'otel-llm-energy[demo]'")


def missing_library(error: Exception) -> str | None:
    """What to say where a package is there and a library that it loads is not, such as OpenMP's in slim images."""
    library, _, reason = str(error).partition(": ")
    if "cannot open shared object file" not in reason:
        return None
    name = library.partition(".so")[0]
    package = f"{name}1" if name == "libgomp" else name
    return f"{library} missing, a library of the system. Install it; on Debian and Ubuntu: apt install {package}"


def typed(subcommand: str) -> str:
    """What the user is to type for it: after ``make demo`` the program is not on the path, and is called by its own."""
    called = sys.argv[0]
    by_its_path = Path(called).name == PROGRAM and shutil.which(PROGRAM) is None
    return f"{called if by_its_path else PROGRAM} {subcommand}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Args:
        argv: the words after the program's name; the process's own if ``None``.

    Returns:
        the exit code: 0; 1 if something failed; 2 for a command line that is none; 130 after Ctrl-C; 141
        if nobody reads the output any more.
    """
    asked = _asked(_module_apart(sys.argv[1:] if argv is None else argv))
    command: Callable[[argparse.Namespace], int] = asked.command
    if asked.own_signals:
        return command(asked)
    _open_what_is_closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Σ shows ?, rather than nothing after all calls
    try:
        return _run_to_the_end(command, asked)
    except BrokenPipeError:
        if not _reader_has_gone():
            raise
        return UNREAD


def _open_what_is_closed() -> None:
    """Python has ``None`` where a shell's ``>&-`` closed it; the next file would get its number, and what is said."""
    for name in ("stdin", "stdout", "stderr"):  # each takes the lowest number that is free: its own
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(nowhere, True)
            setattr(sys, name, os.fdopen(nowhere, "r" if name == "stdin" else "w"))


def _asked(words: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    asked, strange = parser.parse_known_args(words)
    if strange and asked.command is _run:
        asked.parser.error(
            f"{strange[0]} is no option. Python's own go before: python {strange[0]} -m {__name__} run ..."
        )
    if strange:
        parser.error(f"unrecognized arguments: {' '.join(strange)}")
    return asked


def _module_apart(words: Sequence[str]) -> Sequence[str]:
    """With ``run -mMODULE`` in two words: joined, argparse takes what follows for ours."""
    if len(words) > 1 and words[0] == "run" and words[1].startswith("-m") and words[1] != "-m":
        return [words[0], "-m", words[1][2:], *words[2:]]
    return words


def _run_to_the_end(command: Callable[[argparse.Namespace], int], asked: argparse.Namespace) -> int:
    # A shell's background jobs start with SIGINT ignored; who sends it to one of ours means it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = command(asked)
        sys.stdout.flush()  # at the exit it would be too late to be told
        return code
    except CommandError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is left to do at the exit is short
        print("\nBroken off.", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        if error.errno not in _NO_ROOM or error.filename is not None:
            raise
        _have_go_nowhere(1)
        print(f"{PROGRAM}: {error.strerror}: is standard output a file on a full disk? Make room.", file=sys.stderr)
        return 1


def _reader_has_gone() -> bool:
    """Whether standard output or error is a pipe that nobody reads."""
    watched = select.poll()
    for descriptor in (1, 2):
        watched.register(descriptor, 0)
    gone = [descriptor for descriptor, state in watched.poll(0) if state & (select.POLLERR | select.POLLHUP)]
    for descriptor in gone:
        _have_go_nowhere(descriptor)
    return bool(gone)


def _have_go_nowhere(descriptor: int) -> None:
    """What is still held for it, and would fail again at the exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Measured energy on every LLM call's span.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_run(commands)
    _add_doctor(commands)
    add_study(commands)
    return parser


def _add_demo(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "demo",
        help="ask a small real model and show the joules of each call",
        description="Asks a small real model (SmolLM2 by llama.cpp, fetched once), or a server of yours, three "
        "questions one after another, four at once and one streamed, and shows the joules on the span tree.",
    )
    add_meter_options(parser)
    parser.add_argument("--base-url", metavar="URL", help="ask this OpenAI-compatible server instead of our own")
    parser.add_argument("--model", metavar="M", help="its model; without --base-url the path of a GGUF file to serve")
    parser.add_argument("--otlp", metavar="ENDPOINT", help="send the spans there too, such as http://localhost:4318")
    parser.add_argument("--json", action="store_true", help="print one JSON object: calls, balance, meters")
    parser.set_defaults(command=_demo, own_signals=False)


def _add_run(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "run",
        usage=f"{PROGRAM} run (SCRIPT | -m MODULE) [ARGUMENT ...]",
        help="run a script or module as python does, its LLM calls measured",
        description="Runs a script or module as python does, with otel_llm_energy.instrument() called before it. "
        "OTEL_* and OTEL_LLM_ENERGY_* variables say how.",
    )
    parser.add_argument("-m", dest="module", nargs=argparse.REMAINDER, metavar="MODULE", help="a module, as python -m")
    parser.add_argument("script", nargs=argparse.REMAINDER, metavar="SCRIPT", help="a script and its arguments")
    parser.set_defaults(command=_run, own_signals=True, parser=parser)


def _add_doctor(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "doctor",
        help="say which meters work here, which do not, and what would mend them",
        description="Reads the meters for a few seconds, as OTEL_LLM_ENERGY_* says. Exit code 0 if energy is "
        "measured, 1 if it is only estimated or not known at all.",
    )
    parser.set_defaults(command=_doctor, own_signals=False)


# Each command is imported when it is asked for: the others' libraries need not be there.


def _demo(asked: argparse.Namespace) -> int:
    from otel_llm_energy.cli.demo import DemoOptions, run_demo

    options = DemoOptions(
        named_meter=named_meter(asked),
        base_url=asked.base_url,
        model=asked.model,
        otlp_endpoint=asked.otlp,
        as_json=asked.json,
    )
    return run_demo(options)


def _run(asked: argparse.Namespace) -> int:
    from otel_llm_energy.cli.run import run_module, run_script

    if asked.module and asked.module[0]:
        return run_module(asked.module[0], asked.module[1:])
    script = asked.script[1:] if asked.script[:1] == ["--"] else asked.script
    if script and script[0]:
        return run_script(script[0], script[1:])
    asked.parser.error("name a script, or a module after -m")
    return 2


def _doctor(asked: argparse.Namespace) -> int:
    from otel_llm_energy.cli.doctor import run_doctor

    return run_doctor()

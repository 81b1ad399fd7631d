"""``run`` is python with the one line before; ``doctor`` says what is measured."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from otel_llm_energy.cli.doctor import judged, works
from otel_llm_energy.cli.metering import baseline_known, missing
from otel_llm_energy.idle_memory import IdleMemory, machine_facts
from otel_llm_energy.ledger.ledger import Balance
from otel_llm_energy.meters import OpenMeter, RaplMeter
from otel_llm_energy.meters.discovery import LeftOut
from otel_llm_energy.quantities import Channel, Component, IdlePower
from otel_llm_energy.status import ChannelStatus, Status
from tests.support.children import environment_without_settings, free_port
from tests.support.powercap import PowercapTree

if TYPE_CHECKING:
    from tests.conftest import LlamaServerFactory

_COMMAND = [sys.executable, "-m", "otel_llm_energy.cli"]
_SECONDS = 60
_ESTIMATES = {"OTEL_LLM_ENERGY_METERS": "cpu-estimate", "OTEL_LLM_ENERGY_IDLE_WATTS": "1"}
_APP = """
import sys
import otel_llm_energy
import beside_the_app
print(sys.argv[1:], __name__, otel_llm_energy.instrument().active)
sys.exit(int(sys.argv[1]))
"""
_ASKS = """
import openai
client = openai.OpenAI()
client.chat.completions.create(model="smollm2-135m", messages=[{"role": "user", "content": "Hello"}], max_tokens=5)
"""

_STARTS_OTHERS = """
import multiprocessing, os, subprocess, sys

def show(worker):
    energy = sys.modules.get("otel_llm_energy.instrument")
    said = f"{worker} {bool(energy and energy._registry)} {sys.modules['sitecustomize'].__name__}"
    os.write(1, f"{said}\\n".encode())  # in one piece: several processes write at the same time

if __name__ == "__main__":
    for method in ("spawn", "forkserver"):
        worker = multiprocessing.get_context(method).Process(target=show, args=(method,))
        worker.start()
        worker.join()
    show = "import os, sys; seen = [name in sys.modules for name in ('otel_llm_energy', 'sitecustomize')]"
    show += "; os.write(1, 'other {} {}{}'.format(*seen, os.linesep).encode())"
    subprocess.run([sys.executable, "-c", show], check=True)
"""

_STARTS_ITSELF = """
import os, subprocess, sys
energy = sys.modules.get("otel_llm_energy.instrument")
os.write(1, f"{sys.argv[1:]} {bool(energy and energy._registry)}\\n".encode())
if not os.environ.get("STARTED_ANEW"):
    os.environ["STARTED_ANEW"] = "yes"
    program = [sys.argv[0]] if __spec__ is None else ["-m", __spec__.name]
    for words in ([*program, *sys.argv[1:]], [*program, "other"]):
        subprocess.run([sys.executable, "-Xutf8", *words], check=True)
"""


def _command(
    *arguments: str, folder: Path | None = None, streams: Mapping[str, int] | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*_COMMAND, *arguments],
        cwd=folder,
        env=environment_without_settings(**variables),
        text=True,
        timeout=_SECONDS,
        check=False,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **(streams or {})},
    )


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A script that imports a module beside it, says what it sees and ends with the code it is given."""
    (tmp_path / "beside_the_app.py").touch()
    script = tmp_path / "app.py"
    script.write_text(_APP)
    return script


def test_script_sees_what_python_would_show_it_when_it_is_run(app: Path, tmp_path: Path) -> None:
    """Its arguments, even those that look like ours, its neighbours, and its own exit code; and it is measured."""
    done = _command("run", str(app), "3", "-m", "--json")
    assert done.returncode == 3, done.stderr
    assert done.stdout == "['3', '-m', '--json'] __main__ True\n"


@pytest.mark.parametrize("words", [["-m", "app"], ["-mapp"]], ids=["apart", "joined"])
def test_module_sees_what_python_would_show_it_when_it_is_run(words: list[str], app: Path) -> None:
    """The same for ``-m``, which looks in the working folder."""
    done = _command("run", *words, "4", "-m", "-h", folder=app.parent)
    assert done.returncode == 4, done.stderr
    assert done.stdout == "['4', '-m', '-h'] __main__ True\n"


def test_script_finds_itself_when_it_has_gone_to_another_folder(tmp_path: Path) -> None:
    """Its ``__file__`` is absolute, though it was named from where it was started."""
    (tmp_path / "app.py").write_text("import os\nos.chdir('/')\nprint(open(__file__).readline())\n")
    done = _command("run", "app.py", folder=tmp_path)
    assert done.stdout == "import os\n\n", done.stderr


def test_workers_are_measured_when_an_app_starts_them_anew(tmp_path: Path) -> None:
    """Those of multiprocessing, as uvicorn's are. Other programs are left alone, and what ours hides has run first."""
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "sitecustomize.py").write_text("import os\nos.write(1, b'hidden\\n')\n")
    script = tmp_path / "starts_others.py"
    script.write_text(_STARTS_OTHERS)
    done = _command("run", str(script), PYTHONPATH=os.pathsep.join([str(tmp_path / "hidden"), *sys.path]))
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if line != "hidden"]
    assert said == ["spawn True sitecustomize", "forkserver True sitecustomize", "other False True"]
    # By this program itself, by multiprocessing's own helper, by the worker, by the server that forks the next, and by
    # the other one.
    assert done.stdout.count("hidden") == 5


@pytest.mark.parametrize("words", [["starts_itself.py"], ["-m", "starts_itself"]], ids=["script", "module"])
def test_app_is_measured_when_it_starts_itself_anew(words: list[str], tmp_path: Path) -> None:
    """As the reloader of Django's development server does; with other arguments it is another program."""
    (tmp_path / "starts_itself.py").write_text(_STARTS_ITSELF)
    done = _command("run", *words, "a b", folder=tmp_path, PYTHONPATH=os.pathsep.join(sys.path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["['a b'] True", "['a b'] True", "['other'] False"]


def test_spans_leave_with_energy_when_a_script_ends_at_once(
    tmp_path: Path, powercap: PowercapTree, llama_server: LlamaServerFactory
) -> None:
    """A script that knows nothing of tracing: its call's span is exported with joules before the process ends.

    And the metrics once: where nobody takes them, each time is several seconds for which the exit waits.
    """
    script = tmp_path / "asks.py"
    script.write_text(_ASKS)
    done = _command(
        "run",
        str(script),
        OPENAI_BASE_URL=llama_server(slots=1).base_url,
        OPENAI_API_KEY="unused",
        OTEL_TRACES_EXPORTER="console",
        OTEL_METRICS_EXPORTER="console",
        OTEL_LLM_ENERGY_METERS="rapl",
        OTEL_LLM_ENERGY_POWERCAP_ROOT=str(powercap.root),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"name": "chat smollm2-135m"') == 1
    assert '"llm.energy.joules": ' in done.stdout
    assert done.stdout.count('"resource_metrics": ') == 1
    assert '"llm.energy.consumption"' in done.stdout


def test_error_says_what_to_write_when_there_is_no_such_script() -> None:
    """A name that is no file may have been meant as a module."""
    done = _command("run", "nonexistent.module")
    assert done.returncode == 2
    assert "nonexistent.module: no such file. For a module write -m MODULE." in done.stderr


def test_error_says_what_to_leave_out_when_run_stands_before_python() -> None:
    """As it would before opentelemetry-instrument's command; -m python would be no better."""
    done = _command("run", "python", "app.py")
    assert done.returncode == 2
    assert "python: no such file. Leave it out: what stands here is the script itself, or -m MODULE." in done.stderr


def test_error_is_one_line_when_a_folder_has_no_main(tmp_path: Path) -> None:
    """In Python's own words it is two tracebacks."""
    done = _command("run", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == f"otel-llm-energy run: {tmp_path}: no __main__.py in this folder. Name a script.\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-u", "app.py"], "-u is no option. Python's own go before: python -u -m otel_llm_energy.cli run ..."),
        ([], "name a script, or a module after -m"),
        ([""], "name a script, or a module after -m"),  # a shell's variable that is not set
        (["-m", ""], "name a script, or a module after -m"),
    ],
)
def test_error_says_what_to_write_when_no_program_is_named(words: list[str], said: str) -> None:
    """With the usage of this command, not that of all."""
    done = _command("run", *words)
    assert done.returncode == 2
    assert done.stderr == (
        f"usage: otel-llm-energy run (SCRIPT | -m MODULE) [ARGUMENT ...]\notel-llm-energy run: error: {said}\n"
    )


def test_option_of_python_is_obeyed_when_it_stands_where_the_error_says(tmp_path: Path) -> None:
    """It stands before all of ours."""
    (tmp_path / "app.py").write_text("import sys\nprint(sys.flags.optimize)\n")
    words = [sys.executable, "-O", "-m", "otel_llm_energy.cli", "run", str(tmp_path / "app.py")]
    done = subprocess.run(
        words, env=environment_without_settings(), capture_output=True, text=True, timeout=_SECONDS, check=False
    )
    assert done.stdout == "1\n", done.stderr


def test_error_is_one_line_when_there_is_no_such_module() -> None:
    """As python's own, which is no traceback either; it may be there for another Python."""
    done = _command("run", "-m", "nonexistent.module")
    assert done.returncode == 2
    assert done.stderr == f"otel-llm-energy run: nonexistent: no such module for {sys.executable}.\n"


def test_doctor_is_content_when_counters_can_be_read(powercap: PowercapTree) -> None:
    """Each counter with its idle power, and exit code 0."""
    done = _command("doctor", OTEL_LLM_ENERGY_METERS="rapl", OTEL_LLM_ENERGY_POWERCAP_ROOT=str(powercap.root))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok     rapl: package-0 (cpu), idle " in done.stdout
    assert "ok     rapl: package-0/dram (memory), idle " in done.stdout


def test_doctor_shows_the_idle_power_of_an_earlier_run_with_its_age(powercap: PowercapTree, tmp_path: Path) -> None:
    """It need not learn it anew."""
    memory = IdleMemory(tmp_path / "idle.json", machine_facts(), unix_clock_s=lambda: time.time() - 7200)
    channels = (Channel("package-0", "cpu", "rapl"), Channel("package-0/dram", "memory", "rapl"))
    memory.recall([OpenMeter(RaplMeter(powercap.root), channels)])
    memory.keep({"package-0": [IdlePower(20, 19, 60)], "package-0/dram": [IdlePower(2, 1.9, 60)]})
    done = _command(
        "doctor",
        OTEL_LLM_ENERGY_METERS="rapl",
        OTEL_LLM_ENERGY_POWERCAP_ROOT=str(powercap.root),
        OTEL_LLM_ENERGY_IDLE_CACHE=str(memory.path),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok     rapl: package-0 (cpu), idle 20 W (cached 2 h ago)" in done.stdout
    assert "ok     rapl: package-0/dram (memory), idle 2 W (cached 2 h ago)" in done.stdout


def test_doctor_is_troubled_when_counters_never_move(manual_powercap: PowercapTree) -> None:
    """They can be read, but no call would have joules, whether or not their idle power is known."""
    done = _command(
        "doctor",
        OTEL_LLM_ENERGY_METERS="rapl",
        OTEL_LLM_ENERGY_POWERCAP_ROOT=str(manual_powercap.root),
        OTEL_LLM_ENERGY_IDLE_WATTS="package-0=20,package-0/dram=2",
    )
    assert done.returncode == 1, done.stdout + done.stderr
    for channel in ("package-0 (cpu), idle 20 W", "package-0/dram (memory), idle 2 W"):
        assert re.search(rf"^TROUBLE rapl: {re.escape(channel)}, .* It has not moved in \d+ s$", done.stdout, re.M)
    assert "A meter is there, but gives no energy just now. See that what feeds it runs, or name another" in done.stdout


def _read(
    component: Component,
    *,
    metered_joules: int = 5,
    age_seconds: float | None = 0.5,
    period_seconds: float | None = 1,
    host: str = "",
) -> ChannelStatus:
    """A counter of RAPL that is read."""
    balance = Balance(metered_joules * 10**9, 0, 0, {})
    channel = Channel(component, component, "rapl", host=host)
    return ChannelStatus(channel, balance, 20, "learned", None, age_seconds, None, period_seconds=period_seconds)


@pytest.mark.parametrize(
    ("channels", "troubled"),
    [
        ([_read("cpu"), _read("memory")], []),
        ([_read("cpu", metered_joules=0), _read("memory")], ["cpu"]),
        ([_read("cpu", metered_joules=0, age_seconds=None)], ["cpu"]),
        ([_read("cpu"), _read("memory", metered_joules=0)], []),
        ([_read("memory", metered_joules=0)], ["memory"]),
        ([_read("cpu", host="another"), _read("memory", metered_joules=0)], ["memory"]),
        ([_read("cpu"), _read("gpu", age_seconds=20)], ["gpu"]),
        ([_read("cpu", age_seconds=20, period_seconds=61)], []),
        ([_read("cpu", metered_joules=0, period_seconds=None)], []),
    ],
    ids=[
        "good",
        "still",
        "never-read",
        "memory-unused",
        "memory-alone",
        "memory-of-a-host",
        "stopped",
        "rare",
        "read-by-another-process",
    ],
)
def test_doctor_is_troubled_when_a_counter_that_can_be_read_gives_no_energy(
    channels: list[ChannelStatus], troubled: list[str]
) -> None:
    """Memory that never moves is not missed in a bill, and of what another process reads only that one can tell."""
    status = judged(Status(tuple(channels), (), {}, "joined"), 8.0)
    assert [each.channel.id for each in status.channels if each.problem] == troubled
    assert works(status) is not bool(troubled)


def test_idle_power_is_known_when_that_of_every_counter_is() -> None:
    """Else the first calls would have no part above idle."""
    known, unknown = _read("cpu"), replace(_read("memory"), idle_watts=None)
    assert [baseline_known(channels) for channels in ([], [known, unknown], [known])] == [False, False, True]


def test_meter_is_not_missed_when_another_made_it_unnecessary() -> None:
    """It would read the same energy again."""
    refused, overlapping = LeftOut("scaphandre", "meter-refused", ""), LeftOut("cpu-estimate", "overlap", "")
    assert missing(Status((_read("cpu"),), (refused, overlapping), {}, "joined")) == [refused]


def test_doctor_says_what_would_mend_it_when_nothing_can_be_measured() -> None:
    """The estimate is named as one; each meter that is left out has its reason and what would bring it back."""
    done = _command(
        "doctor",
        OTEL_LLM_ENERGY_POWERCAP_ROOT="/nonexistent",
        OTEL_LLM_ENERGY_SCAPHANDRE_URL=f"http://127.0.0.1:{free_port()}/metrics",
        OTEL_LLM_ENERGY_BOARD="/dev/null/board",
        OTEL_LLM_ENERGY_METER="rapl",
    )
    assert done.returncode == 1
    of_the_option = "OTEL_LLM_ENERGY_METER is no option and does nothing: is OTEL_LLM_ENERGY_METERS meant?"
    assert done.stderr.splitlines() == [of_the_option]  # the log, without what has a row
    assert done.stdout.endswith("LLM calls on this machine get estimates that say so.\n")
    assert re.search("^TROUBLE this process works alone", done.stdout, re.M)
    assert "an estimate from CPU time, no measurement" in done.stdout
    assert "no     rapl: meter-not-found" in done.stdout
    assert "no     scaphandre: meter-refused" in done.stdout
    assert done.stdout.count("mend it: ") == 2


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_command_ends_quietly_when_nobody_reads_its_output(stream: str, unbuffered: str, tmp_path: Path) -> None:
    """``| head`` closes the pipe: no traceback, and the exit code that shells know for that."""
    receive, send = os.pipe()
    os.close(receive)
    words = ["doctor"] if stream == "stdout" else ["study", "report", str(tmp_path / "none")]
    try:
        done = _command(
            *words,
            streams={stream: send},
            OTEL_LLM_ENERGY_METERS="cpu-estimate",
            OTEL_LLM_ENERGY_IDLE_WATTS="1",
            PYTHONUNBUFFERED=unbuffered,
        )
    finally:
        os.close(send)
    assert done.returncode == 141
    assert not done.stdout
    assert not done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_error_is_one_line_when_the_disk_is_full_that_output_goes_to(unbuffered: str) -> None:
    """Not a traceback after all that was measured."""
    with Path("/dev/full").open("w") as full:
        done = _command("doctor", streams={"stdout": full.fileno()}, **_ESTIMATES, PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("otel-llm-energy: No space left on device")


@pytest.mark.parametrize(
    ("words", "closed"), [("doctor", "<&- >&-"), ("study report none", "2>&-")], ids=["output", "errors"]
)
def test_command_says_nothing_elsewhere_when_a_stream_is_closed(words: str, closed: str, tmp_path: Path) -> None:
    """Neither a traceback, nor on the other stream what was for the closed one."""
    done = subprocess.run(
        ["/bin/sh", "-c", f"{shlex.join(_COMMAND)} {words} {closed}"],
        cwd=tmp_path,
        env=environment_without_settings(**_ESTIMATES),
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


def test_version_is_told_when_it_is_asked_for() -> None:
    """One line with the program's name."""
    assert _command("--version").stdout.startswith("otel-llm-energy 0.")

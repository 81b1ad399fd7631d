"""The demo's server is the real llama.cpp in a process of its own that never outlives its parent."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import openai
import pytest

from otel_llm_energy.cli.model import ModelError
from otel_llm_energy.cli.model_server import ModelServer, ServerOptions

if TYPE_CHECKING:
    from tests.conftest import LlamaServerFactory

_PARENT = """
import sys, time
from pathlib import Path
from otel_llm_energy.cli.model_server import ModelServer, ServerOptions
print(ModelServer(ServerOptions(Path(sys.argv[1]))).start().pid, flush=True)
time.sleep(600)
"""


def test_answer_carries_the_servers_timings_when_it_is_asked(llama_server: LlamaServerFactory) -> None:
    """A plain OpenAI client gets an answer, and with it how long the server worked."""
    client = openai.OpenAI(base_url=llama_server(slots=1).base_url, api_key="unused", max_retries=0)
    answer = client.chat.completions.create(
        model="smollm2-135m", messages=[{"role": "user", "content": "Name a colour."}], max_tokens=4
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4
    assert answer.model_extra is not None
    assert answer.model_extra["timings"]["predicted_ms"] > 0


def test_same_server_is_given_when_the_same_options_are_asked_for(llama_server: LlamaServerFactory) -> None:
    """Tests share a server; other options get another one."""
    assert llama_server(slots=1) is llama_server(slots=1)
    assert llama_server(slots=2).pid != llama_server(slots=1).pid


def test_server_ends_when_its_parent_is_killed(model_path: Path) -> None:
    """A killed parent cannot say goodbye; the end of the pipe does."""
    command = [sys.executable, "-c", _PARENT, str(model_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        server = os.pidfd_open(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
    try:
        ended, _, _ = select.select([server], [], [], 20)
        assert ended
    finally:
        os.close(server)


def test_error_is_raised_when_there_is_no_model_file(tmp_path: Path) -> None:
    """A server that cannot start says so at once, with the exit code that it ends with a moment later."""
    with pytest.raises(ModelError, match=r"did not start \(exit code 1\)"):
        ModelServer(ServerOptions(tmp_path / "none.gguf")).start()


def test_error_names_the_package_when_a_library_of_the_system_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As in slim images, where it told people to install what they had. (llama.cpp's module is played here.)"""
    said = "libgomp.so.1: cannot open shared object file: No such file or directory"
    (tmp_path / "xllamacpp.py").write_text(f"raise ImportError({said!r})")
    (tmp_path / "model.gguf").touch()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))
    with pytest.raises(ModelError, match="did not start"):
        ModelServer(ServerOptions(tmp_path / "model.gguf")).start()
    assert capfd.readouterr().err == (
        "libgomp.so.1 missing, a library of the system. Install it; on Debian and Ubuntu: apt install libgomp1\n"
    )


def test_error_names_the_file_when_it_is_no_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One line, and not a traceback of ours."""
    (tmp_path / "text.gguf").write_text("no model")
    with pytest.raises(ModelError, match="did not start"):
        ModelServer(ServerOptions(tmp_path / "text.gguf")).start()
    said = capfd.readouterr().err
    assert f"{tmp_path}/text.gguf: llama.cpp does not serve it; is it a whole GGUF file?" in said
    assert "Traceback" not in said

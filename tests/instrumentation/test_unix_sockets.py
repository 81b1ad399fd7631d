"""Servers at Unix sockets: the address of a call is the socket, whatever host its URL names."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx
import ollama
import openai
import pytest
import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool

from tests.instrumentation import payloads
from tests.instrumentation.bare import ASK, async_libraries, bare
from tests.instrumentation.conftest import Watched
from tests.instrumentation.replay import ReplayServer, json_reply, replaying

__all__ = ["bare"]

URL = "http://localhost/v1/chat/completions"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "Llm.sock"


@pytest.fixture
def server(path: Path) -> Iterator[ReplayServer]:
    """Answers at the socket."""
    with replaying(path) as running:
        running.reply = json_reply(payloads.CHAT)
        yield running


def assert_at(watched: Watched, path: Path) -> None:
    """The span and the observers know the socket, and no port."""
    attributes = watched.only_span().attributes or {}
    assert (attributes["server.address"], "server.port" in attributes) == (str(path), False)
    assert (watched.started[0].server_address, watched.started[0].server_port) == (str(path), None)
    assert watched.ended[0].error_type is None


class Retrying(httpx.BaseTransport):
    """Wraps another transport, as many packages do."""

    def __init__(self, inner: httpx.BaseTransport) -> None:
        self.attempts = 3
        self.inner = inner

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self.inner.handle_request(request)


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("wrap", [lambda transport: transport, Retrying])
def test_call_of_httpx_is_the_sockets_when_its_transport_leads_there(bare: Watched, path: Path, wrap: Any) -> None:
    """Also where a transport of the app's own stands before it."""
    with httpx.Client(transport=wrap(httpx.HTTPTransport(uds=str(path)))) as client:
        assert client.post(URL, json=ASK).status_code == 200
    assert_at(bare, path)


@pytest.mark.usefixtures("server")
def test_call_of_httpx_is_the_sockets_when_it_is_mounted_for_that_host(
    bare: Watched, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its path is made absolute, since others have to find it."""
    monkeypatch.chdir(path.parent)
    with httpx.Client(mounts={"http://localhost": httpx.HTTPTransport(uds=path.name)}) as client:
        assert client.post(URL, json=ASK).status_code == 200
    assert_at(bare, path)


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("library", async_libraries())
async def test_asynchronous_call_is_the_sockets_when_its_transport_leads_there(
    bare: Watched, path: Path, library: Any
) -> None:
    """Of httpx and of httpx2."""
    async with library.AsyncClient(transport=library.AsyncHTTPTransport(uds=str(path))) as client:
        assert (await client.post(URL, json=ASK)).status_code == 200
    assert_at(bare, path)


@pytest.mark.usefixtures("server")
def test_calls_of_openai_are_each_clients_own_when_their_addresses_look_alike(watched: Watched, path: Path) -> None:
    """One goes to the socket, the other to a port of the same host name, where nobody listens."""
    by_socket = openai.OpenAI(
        base_url="http://localhost:1/v1",
        api_key="k",
        http_client=httpx.Client(transport=httpx.HTTPTransport(uds=str(path))),  # type: ignore[arg-type, unused-ignore]
    )
    with by_socket, openai.OpenAI(base_url="http://localhost:1/v1", api_key="k", max_retries=0) as by_port:
        by_socket.chat.completions.create(model="m", messages=[])
        with pytest.raises(openai.APIConnectionError):
            by_port.chat.completions.create(model="m", messages=[])
        by_socket.with_options(timeout=9).chat.completions.create(model="m", messages=[])
    reached = [(call.server_address, call.server_port) for call in watched.started]
    assert reached == [(str(path), None), ("localhost", 1), (str(path), None)]


def test_call_of_ollama_is_the_sockets_when_its_transport_leads_there(
    watched: Watched, server: ReplayServer, path: Path
) -> None:
    """Its client hands what it is given on to httpx."""
    server.reply = json_reply({"model": "m", "message": {"role": "assistant", "content": "x"}, "done": True})
    client = ollama.Client(transport=httpx.HTTPTransport(uds=str(path)))
    client.chat(model="m", messages=[])
    assert_at(watched, path)


class _Adapter(HTTPAdapter):
    """As requests-unixsocket has it: the path stands where a host would."""

    def get_connection_with_tls_context(self, request: Any, *_: Any, **__: Any) -> HTTPConnectionPool:
        return self.get_connection(request.url)

    def get_connection(self, url: Any, *_: Any, **__: Any) -> HTTPConnectionPool:  # all that requests before 2.32 asks
        path = unquote(urlsplit(url).netloc)

        class Connection(HTTPConnection):
            def connect(self) -> None:
                self.sock = socket.socket(socket.AF_UNIX)
                self.sock.connect(path)

        pool = HTTPConnectionPool("localhost")
        pool.ConnectionCls = Connection
        return pool

    def request_url(self, request: Any, proxies: Any) -> str:
        return str(request.path_url)


@pytest.mark.usefixtures("server")
def test_call_of_requests_is_the_sockets_when_its_url_holds_the_path(bare: Watched, path: Path) -> None:
    """``http+unix://%2Frun%2Fllm.sock/v1/...``."""
    url = f"http+unix://{str(path).replace('/', '%2F')}/v1/chat/completions"
    with requests.Session() as session:
        session.mount("http+unix://", _Adapter())
        assert session.post(url, json=ASK, timeout=30).status_code == 200
    assert_at(bare, path)


def test_call_has_reached_nobody_when_the_sockets_file_is_missing(bare: Watched, path: Path) -> None:
    """So nobody has worked on it."""
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client, pytest.raises(httpx.ConnectError):
        client.post(URL, json=ASK)
    url = f"http+unix://{str(path).replace('/', '%2F')}/v1/chat/completions"
    with requests.Session() as session:
        session.mount("http+unix://", _Adapter())
        with pytest.raises(requests.ConnectionError):
            session.post(url, json=ASK, timeout=30)
    assert [call.reached_server for call in bare.ended] == [False, False]

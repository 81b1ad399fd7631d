"""What a server tells of itself, where it is none of llama.cpp's, or tells it badly."""

from __future__ import annotations

import socket
import threading

import pytest

from otel_llm_energy.servers.props import LoadingError, slots_told
from tests.instrumentation.replay import Reply, json_reply, replaying
from tests.meters.exporters import exporter
from tests.support.children import free_port


@pytest.mark.parametrize(
    "reply",
    [
        json_reply({"error": {"message": "Invalid API Key"}}, 401),
        json_reply({"total_slots": 0}),
        json_reply({"total_slots": "4"}),
        json_reply({"total_slots": True}),
        json_reply([4]),
        Reply([b"<html>"], content_type="text/html"),
        Reply([b"{"], breaks_off=True),
        Reply([], raw=b"SSH-2.0-OpenSSH_9.6\r\n"),
    ],
)
def test_slots_are_unknown_when_the_answer_does_not_tell_them(reply: Reply) -> None:
    """Nothing is guessed, and nothing raised."""
    with replaying() as server:
        server.get_reply = reply
        assert slots_told("127.0.0.1", server.port) is None


@pytest.mark.parametrize("begin", [b"HTTP/1.1 200 OK\r\nx: ", b"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n"])
def test_nobody_waits_for_an_answer_that_comes_one_byte_after_another(begin: bytes) -> None:
    """Each byte of the head, or of the body, comes in time."""
    told = threading.Event()

    def drip(connection: socket.socket) -> None:
        connection.sendall(begin)
        while not told.wait(0.02):
            connection.sendall(b" ")

    with exporter(drip) as served:
        asking = threading.Thread(target=lambda: (slots_told("127.0.0.1", served.port, 0.3), told.set()))
        asking.start()
        assert told.wait(30)
        asking.join()


def test_slots_are_unknown_when_nobody_listens() -> None:
    """The server has just ended."""
    assert slots_told("127.0.0.1", free_port()) is None


def test_server_that_loads_its_model_is_told_from_one_that_does_not_say() -> None:
    """Only the first is worth asking again."""
    with replaying() as server:
        server.get_reply = json_reply({"error": {"code": 503, "message": "Loading model"}}, 503)
        with pytest.raises(LoadingError):
            slots_told("127.0.0.1", server.port)

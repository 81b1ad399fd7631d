"""Answers as a Prometheus does from samples that a real one recorded, at any time that a test wants it to be.

A stand-in, because a real one scrapes in real time; `test_prometheus_live` asks the real one. It knows what time it is
and range vectors of matched names and labels, and nothing else. It may also stand for another store that was recorded
by `record_stores`: its clocks answer in that store's form, and each sample shows as late as it did there.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from otel_llm_energy.meters import PrometheusMeter
from tests.meters.exporters import ManualClock

_FIXTURES = Path(__file__).with_name("fixtures")
RECORDED: list[dict[str, Any]] = json.loads((_FIXTURES / "prometheus.json").read_text())
_SELECTOR = re.compile(r"\{(.*)\}\[(\d+)s\]")
_MATCHER = re.compile(r'(\w+|"[\w.]+")(=~|=)"((?:[^"\\]|\\.)*)"')


class Replay:
    """The recorded series, and what time it is.

    Args:
        store: the recording of a store other than Prometheus.

    Attributes:
        series: in the form of the API; a third element of a value is how old it was when the store first showed it.
        ahead_seconds: by how much its clock is ahead of the recording's.
        now: seconds since 1970 by the recording's clock.
        requests: path and headers of each request.
        clocks: how the store answered a query for the time.
        warnings: what it says beside each answer.
        broken: a body to answer with instead, and its status.
        on_the_way: called before a request is answered, and after that.
    """

    def __init__(self, store: str | None = None) -> None:
        recorded = {"clocks": {}, "series": RECORDED} if store is None else _recorded(store)
        self.clocks: dict[str, Any] = recorded["clocks"]
        self.series = [dict(each) for each in recorded["series"]]
        self.now = self.times("one:8080")[1] + 0.5
        self.ahead_seconds = 0.0
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.warnings: list[str] = []
        self.broken: tuple[int, bytes] | None = None
        self.on_the_way: tuple[Callable[[], None], Callable[[], None]] | None = None
        self.url = ""

    def times(self, instance: str) -> list[float]:
        """When a host was scraped."""
        (energy,) = [
            each
            for each in self.series
            if each["metric"]["__name__"] == "scaph_host_energy_microjoules" and each["metric"]["instance"] == instance
        ]
        return [value[0] for value in energy["values"]]

    def keep(self, instance: str) -> None:
        """There is only this host."""
        self.series = [each for each in self.series if each["metric"].get("instance") == instance]

    def stretch(self, factor: float) -> None:
        """Scraped so many times as seldom; powers are as much lower."""
        first = self.times("one:8080")[0]
        stretched = []
        for each in self.series:
            power = "power" in each["metric"]["__name__"]
            stretched.append(
                {
                    **each,
                    "values": [
                        [round(first + (at - first) * factor, 3), str(float(text) / factor) if power else text]
                        for at, text, *_ in each["values"]
                    ],
                }
            )
        self.series = stretched

    def document(self, query: str) -> Any:
        """The whole answer."""
        there, back = self.on_the_way or (_at_once, _at_once)
        warnings = {"warnings": self.warnings} if self.warnings else {}
        there()
        answer = self.answer(query)
        back()
        return {"status": "success", "data": answer, **warnings}

    def answer(self, query: str) -> Any:
        """The ``data`` of an instant query."""
        now = self.now + self.ahead_seconds
        if query in self.clocks:
            return _shifted(self.clocks[query], now)
        if query == "time()":
            return {"resultType": "scalar", "result": [now, f"{now:.3f}"]}
        selector = _SELECTOR.fullmatch(query)
        assert selector is not None, query
        matchers = _MATCHER.findall(selector[1])
        first = now - int(selector[2])
        result = []
        for each in self.series:
            shown = [value for value in each["values"] if value[0] + sum(value[2:]) <= self.now]
            shifted = [[at + self.ahead_seconds, text] for at, text, *_ in shown]
            values = [value for value in shifted if first < value[0] <= now]
            if values and all(_matches(each["metric"], name.strip('"'), *rest) for name, *rest in matchers):
                result.append({"metric": each["metric"], "values": values})
        return {"resultType": "matrix", "result": result}


class Time:
    """Our clock and the Prometheus', which move together."""

    def __init__(self, replay: Replay) -> None:
        self.clock = ManualClock()
        self._replay = replay

    def pass_by(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self._replay.now += seconds

    def requests_take(self, there_seconds: float, back_seconds: float) -> None:
        """From now on time passes until a request is answered, and until its answer is here."""
        self._replay.on_the_way = partial(self.pass_by, there_seconds), partial(self.pass_by, back_seconds)

    def meter(self, **options: Any) -> PrometheusMeter:
        """A meter that goes by our clock."""
        return PrometheusMeter(self._replay.url, clock_ns=self.clock, **options)


def _at_once() -> None: ...


def _matches(labels: dict[str, str], name: str, how: str, value: str) -> bool:
    if how == "=~":
        return re.fullmatch(value, labels.get(name, "")) is not None
    return labels.get(name, "") == json.loads(f'"{value}"')


def _recorded(store: str) -> dict[str, Any]:
    recorded: dict[str, Any] = json.loads((_FIXTURES / f"{store}.json").read_text())
    return recorded


def _shifted(clock: dict[str, Any], now: float) -> Any:
    """What a clock that was asked at another time would have answered now."""
    data = clock["answer"]["data"]
    later = now - clock["asked"]
    if data["resultType"] == "scalar":
        return {**data, "result": _later(data["result"], later)}
    return {**data, "result": [{**each, "value": _later(each["value"], later)} for each in data["result"]]}


def _later(value: list[Any], seconds: float) -> list[Any]:
    at, text = value
    return [at + seconds, f"{float(text) + seconds:.6f}"]


@contextmanager
def replaying(store: str | None = None) -> Iterator[Replay]:
    """A Prometheus, or another store that was recorded, on loopback for the length of the block."""
    replay = Replay(store)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            replay.requests.append((self.path, dict(self.headers)))
            (query,) = parse_qs(urlsplit(self.path).query)["query"]
            status, body = replay.broken or (
                200,
                json.dumps(replay.document(query)).encode(),
            )
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        replay.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield replay
        finally:
            server.shutdown()
            thread.join()

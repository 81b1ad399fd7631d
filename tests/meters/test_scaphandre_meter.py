"""The Scaphandre meter, on recorded answers of the real exporter replayed over real HTTP."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
import traceback
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.instrumentation.utils import is_instrumentation_enabled

from otel_llm_energy.ledger.counter import Bucket, Counter
from otel_llm_energy.meters.base import MeterError
from otel_llm_energy.meters.exposition import Sample, parse
from otel_llm_energy.meters.scaphandre import ScaphandreMeter
from otel_llm_energy.meters.scaphandre_counters import (
    COUNTER_FAMILIES,
    DOMAIN_ENERGY,
    HOST_ENERGY,
    HOST_POWER,
    SOCKET_ENERGY,
    Counters,
    counters,
)
from otel_llm_energy.meters.scaphandre_refresh import Refreshes
from otel_llm_energy.meters.scrape import MAX_BODY_BYTES, MAX_SAMPLES, Exporter
from otel_llm_energy.quantities import NS_PER_SECOND, Channel, Reading
from tests.meters.exporters import ManualClock, exporter, page, recorded, say
from tests.meters.record_fixtures import RANGE_UJ
from tests.support.children import free_port
from tests.support.tls import certified


def totals(host_uj: int, host_uw: float | None = None, socket_uj: int | None = None) -> bytes:
    """A small page of one socket; its counter is the host's unless given."""
    lines = [
        f'{SOCKET_ENERGY}{{socket_id="0"}} {host_uj if socket_uj is None else socket_uj}',
        f"{HOST_ENERGY} {host_uj}",
    ]
    if host_uw is not None:
        lines.append(f"{HOST_POWER} {host_uw:.0f}")
    return "\n".join([*lines, ""]).encode()


def values(readings: Iterable[Reading]) -> dict[str, int]:
    """The energy by channel."""
    return {reading.channel_id: reading.energy_uj for reading in readings}


def opened(url: str, clock: ManualClock | None = None, **options: float) -> ScaphandreMeter:
    """An open meter."""
    meter = ScaphandreMeter(url, clock_ns=clock or ManualClock(), **options)  # type: ignore[arg-type]
    meter.open()
    return meter


def test_sockets_and_memory_are_the_channels_when_there_are_two_sockets() -> None:
    """Core is inside its socket and the host is their sum: neither is a channel."""
    with exporter(recorded("two-sockets-0")) as served:
        channels = ScaphandreMeter(served.url).open()
    assert {channel.id: channel.component for channel in channels} == {
        "package-0": "cpu",
        "package-1": "cpu",
        "package-0/dram": "memory",
        "package-1/dram": "memory",
    }
    assert all(channel.meter == "scaphandre" and not channel.estimated for channel in channels)


def test_psys_is_no_socket_when_the_exporter_lists_it_as_one() -> None:
    """Without domain folders psys appears among the sockets; adding it would count the package twice."""
    with exporter(recorded("psys-0"), recorded("psys-1")) as served:
        clock = ManualClock()
        meter = ScaphandreMeter(served.url, clock_ns=clock)
        assert [channel.id for channel in meter.open()] == ["package-0"]
        meter.read()
        clock.advance(2.2)
        assert set(values(meter.read())) == {"package-0"}


def test_mmio_duplicates_are_not_read_when_the_page_has_them() -> None:
    """The mmio families repeat the same counters."""
    page_text = totals(5_000_000) + b'scaph_socket_rapl_mmio_energy_microjoules{socket_id="0"} 5000000\n'
    assert dict(counters(parse([page_text], COUNTER_FAMILIES)).by_channel_uj) == {"package-0": 5_000_000}


def test_the_host_is_the_channel_when_there_is_no_socket() -> None:
    """A page with nothing finer still measures the host."""
    with exporter(f"{HOST_ENERGY} 7000000\n".encode()) as served:
        (channel,) = ScaphandreMeter(served.url).open()
    assert (channel.id, channel.component) == ("host", "host")


def test_a_counter_is_left_out_when_it_is_negative_and_known_when_its_name_ends_in_a_line() -> None:
    """Scaphandre shows names as the kernel's files hold them, and a counter that is below zero counts nothing."""
    samples = [
        Sample(SOCKET_ENERGY, {"socket_id": "0"}, 7),
        Sample(SOCKET_ENERGY, {"socket_id": "1"}, -7),
        Sample(DOMAIN_ENERGY, {"socket_id": "0", "domain_name": "dram\n"}, 2),
        Sample(DOMAIN_ENERGY, {"socket_id": "0", "domain_name": "core\n"}, 3),
    ]
    assert counters(samples).by_channel_uj == {"package-0": 7, "package-0/dram": 2}


SAMPLES = st.builds(
    Sample,
    st.sampled_from([SOCKET_ENERGY, DOMAIN_ENERGY, HOST_ENERGY, HOST_POWER]),
    st.dictionaries(
        st.sampled_from(["socket_id", "domain_name", "value_source"]),
        st.sampled_from(["0", "1", "dram", "core", "dram\n", "powercap_rapl_psys"]),
    ),
    st.integers(-5, 10**12) | st.floats(-1e9, 1e15),
)


@given(st.lists(SAMPLES))
def test_host_never_stands_beside_sockets_when_the_page_is_odd(samples: list[Sample]) -> None:
    """Whatever the page says, the channels do not overlap, and no counter is negative."""
    by_channel_uj = counters(samples).by_channel_uj
    assert ("host" in by_channel_uj) <= (len(by_channel_uj) == 1)
    assert all(energy_uj >= 0 for energy_uj in by_channel_uj.values())


def test_the_first_reading_is_the_opening_answer_when_read_follows_open() -> None:
    """The request of `open` is not wasted, and no second one follows it within 2 s."""
    with exporter(recorded("two-sockets-0")) as served:
        meter = opened(served.url)
        readings = meter.read()
        assert values(readings)["package-1"] == 202_213_180
        assert readings[0].latest_ns - readings[0].earliest_ns == 2_000_000_000, "a refresh of another client may be it"
        assert meter.read() == []
        assert len(served.requests) == 1


def test_readings_are_dated_by_our_request_when_it_caused_the_refresh() -> None:
    """The exporter's power says that its last bucket spans our two requests."""
    with exporter(recorded("two-sockets-0"), recorded("two-sockets-1")) as served:
        clock = ManualClock()
        meter = opened(served.url, clock)
        meter.read()
        clock.advance(2.2)
        readings = meter.read()
    assert len(readings) == 4
    assert {(reading.earliest_ns, reading.latest_ns) for reading in readings} == {(clock.now_ns, clock.now_ns)}


def test_readings_are_dated_back_when_another_client_caused_the_refresh() -> None:
    """Our request 1.0 s after another's gets that one's values: host energy / host power tells when it was."""
    pages = [totals(0), totals(220_000_000, 100e6), totals(480_000_000, 100e6)]
    with exporter(*pages) as served:
        clock = ManualClock()
        meter = opened(served.url, clock)
        meter.read()
        clock.advance(2.2)
        meter.read()
        first_ns = clock.now_ns
        clock.advance(3.6)
        (reading,) = meter.read()
    assert reading.earliest_ns <= first_ns + 2_600_000_000 <= reading.latest_ns
    assert reading.latest_ns - reading.earliest_ns <= 100_000_000


def test_readings_are_dated_when_they_follow_a_stale_answer() -> None:
    """A stale answer proves that there was no refresh up to it; host energy / host power dates the one after it."""
    pages = [totals(0), totals(220_000_000, 100e6), totals(220_000_000, 100e6), totals(660_000_000, 100e6)]
    with exporter(*pages) as served:
        clock = ManualClock()
        meter = opened(served.url, clock)
        meter.read()
        clock.advance(2.2)
        meter.read()
        clock.advance(2.2)
        assert meter.read() == []
        clock.advance(2.2)
        (reading,) = meter.read()
    assert reading.earliest_ns <= clock.now_ns <= reading.latest_ns
    assert reading.latest_ns - reading.earliest_ns <= 100_000_000


def test_the_whole_wait_is_the_bracket_when_the_refresh_cannot_be_dated() -> None:
    """On a wrap the exporter gives no power: the refresh was at some time since our last request."""
    with exporter(*(recorded(f"wrap-{index}") for index in range(3))) as served:
        clock = ManualClock()
        meter = opened(served.url, clock)
        meter.read()
        before_ns = clock.now_ns
        for _ in range(2):
            before_ns = clock.now_ns
            clock.advance(2.2)
            readings = meter.read()
    assert values(readings)["package-0"] < 100_000_000, "the raw counter has wrapped; the ledger unwraps it"
    assert {(reading.earliest_ns, reading.latest_ns) for reading in readings} == {(before_ns, clock.now_ns)}


def test_the_whole_wait_is_the_bracket_when_there_was_time_for_several_refreshes() -> None:
    """After a pause of ours another client may have caused two; the length of the last bucket tells no time then."""
    refreshes = Refreshes()
    refreshes.date(0, 0, Counters({"host": 1_000_000}, 1_000_000, None))
    bucket_of_3_s = Counters({"host": 4_000_000}, 4_000_000, 1_000_000.0)
    assert refreshes.date(10 * NS_PER_SECOND, 10 * NS_PER_SECOND, bucket_of_3_s) == (0, 10 * NS_PER_SECOND)


def test_a_refresh_is_not_ours_when_its_bucket_is_only_as_long_as_our_wait_since_a_stale_answer() -> None:
    """The bucket began at the refresh before that answer: it ended as much earlier."""
    refreshes = Refreshes()
    refreshes.date(0, 0, Counters({"host": 1_000_000}, 1_000_000, None))
    assert refreshes.date(2_000_000_000, 2_000_000_000, Counters({"host": 1_000_000}, 1_000_000, None)) is None
    bucket_of_2_2_s = Counters({"host": 3_200_000}, 3_200_000, 1_000_000.0)
    assert refreshes.date(4_200_000_000, 4_200_000_000, bucket_of_2_2_s) == (2_000_000_000, 2_250_000_000)


@pytest.mark.parametrize(
    ("range_uj", "watts"), [(RANGE_UJ, {"package-0": 30, "package-1": 20}), (None, {"package-1": 20})]
)
def test_only_one_sockets_energy_is_a_gap_when_its_counter_wraps(range_uj: int | None, watts: dict[str, float]) -> None:
    """Recorded: one of two sockets wraps, and the host's sum falls. With the range known, there is no gap at all."""
    with exporter(*(recorded(f"wrap-one-of-two-{index}") for index in range(4))) as served:
        clock = ManualClock()
        meter = opened(served.url, clock, range_uj=range_uj)  # type: ignore[arg-type]
        ledger = {
            name: Counter(Channel(name, "cpu", "scaphandre", range_uj=range_uj)) for name in ("package-0", "package-1")
        }
        buckets: dict[str, list[Bucket]] = {"package-0": [], "package-1": []}
        for _ in range(4):
            for reading in meter.read():
                if reading.channel_id in ledger:
                    bucket = ledger[reading.channel_id].read(reading)
                    buckets[reading.channel_id] += [bucket] if bucket else []
            clock.advance(2.2)
    for name, expected in watts.items():
        assert not [bucket.gap for bucket in buckets[name] if bucket.gap]
        energy_nj, length_ns = (sum(getattr(b, what) for b in buckets[name]) for what in ("energy_nj", "length_ns"))
        assert energy_nj / length_ns == pytest.approx(expected, rel=0.15), "as near as the answers can be dated"
    if range_uj is None:
        assert [bucket.gap for bucket in buckets["package-0"]].count("reset") == 1


def test_a_socket_that_cannot_be_read_is_noticed_when_the_exporter_repeats_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Recorded: it repeats the last value as if alive, and the host's sum lacks it. Said once; the others go on."""
    pages = [recorded(f"unreadable-{index}") for index in range(4)]
    moving = [pages[3].replace(b"324497135", b"%d" % (324_497_135 + 70_000_000 * more)) for more in range(1, 3)]
    with exporter(*pages, *moving) as served, caplog.at_level(logging.WARNING):
        clock = ManualClock()
        meter = opened(served.url, clock)
        got = []
        for _ in range(6):
            got.append(values(meter.read()))
            clock.advance(2.2)
    assert [each["package-1"] for each in got[1:]] == [253_999_568] * 5, "never made up"
    assert len({each["package-0"] for each in got}) == 6
    (record,) = caplog.records
    assert "package-1 stands still" in record.getMessage()


def test_nothing_is_asked_when_the_last_request_is_too_near() -> None:
    """Two requests within 2 s would freeze the exporter for everyone."""
    with exporter(totals(1)) as served:
        clock = ManualClock()
        meter = opened(served.url, clock)
        for _ in range(20):
            clock.advance(0.1)
            meter.read()
        assert len(served.requests) == 1


def test_the_exporter_is_asked_when_the_callers_timer_is_a_little_early() -> None:
    """A few milliseconds must not cost a whole poll; 2 s must pass in any case."""
    with exporter(totals(1), totals(2)) as served:
        clock = ManualClock()
        meter = opened(served.url, clock)
        meter.read()
        clock.advance(2.19)
        assert meter.read()


def test_a_stale_answer_is_left_out_when_no_counter_moved() -> None:
    """The recorded third answer came 1 s after the second and repeats it bit for bit."""
    with exporter(*(recorded(f"two-sockets-{index}") for index in range(3))) as served:
        clock = ManualClock()
        meter = opened(served.url, clock)
        meter.read()
        clock.advance(2.2)
        assert len(meter.read()) == 4
        clock.advance(2.2)
        assert meter.read() == []
        assert not meter.frozen


def test_polling_slows_down_and_says_so_once_when_the_exporter_is_frozen(caplog: pytest.LogCaptureFixture) -> None:
    """Stale answers in a row: one request in 10 s, an error with a reason also in between, one line in the log."""
    with exporter(totals(1)) as served, caplog.at_level(logging.INFO):
        clock = ManualClock()
        meter = opened(served.url, clock)
        reasons = []
        for _ in range(2000):
            clock.advance(0.1)
            try:
                meter.read()
            except MeterError as error:
                reasons.append(error.reason)
        assert meter.frozen
    assert set(reasons) == {"meter-frozen"}
    assert len(reasons) > 2000 * 0.9, "so long it is frozen"
    assert 200 / 10 <= len(served.requests) <= 5 + 200 / 10
    assert [record.levelname for record in caplog.records if "434" in record.getMessage()] == ["WARNING"]


def test_readings_come_again_when_the_freeze_ends() -> None:
    """After a freeze the next fresh answer is one long bucket, and polling is as quick as before."""
    with exporter(
        totals(1), totals(1), totals(1), totals(1), totals(900_000_000, 40e6), totals(1_000_000_000, 45e6)
    ) as served:
        clock = ManualClock()
        meter = opened(served.url, clock)
        meter.read()
        got: list[Reading] = []
        while not got:
            clock.advance(2.2)
            try:
                got = list(meter.read())
            except MeterError as error:
                assert error.reason == "meter-frozen"
        assert not meter.frozen
        assert meter.read() == []
        clock.advance(2.2)
        assert meter.read()


def test_a_channel_is_left_out_when_the_answer_lacks_it() -> None:
    """A counter that vanished is no reading of zero."""
    with exporter(recorded("two-sockets-0"), totals(700_000_000)) as served:
        clock = ManualClock()
        meter = opened(served.url, clock)
        meter.read()
        clock.advance(2.2)
        assert values(meter.read()) == {"package-0": 700_000_000}


def truncated(connection: socket.socket) -> None:
    """Promise more than is sent."""
    connection.sendall(page(totals(1) * 100)[:-50])


def broken_off(connection: socket.socket) -> None:
    """A chunk whose end never comes."""
    connection.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffff\r\n" + totals(1))


def endless(connection: socket.socket) -> None:
    """As much as is taken."""
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b"scaph_host_load_avg_one 1\n" * 10_000)


def dripping(connection: socket.socket) -> None:
    """A byte now and then, so that no single wait is long."""
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b"#")
        time.sleep(0.02)


def hanging(connection: socket.socket) -> None:
    """Never say a word."""
    connection.recv(1)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (hanging, "meter-timeout"),
        (dripping, "meter-timeout"),
        (say(page(b"oops", "500 Internal Server Error")), "meter-http-error"),
        (say(page(b"", "302 Found")), "meter-http-error"),
        (say(b"HTTP/1.1 302 Found\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n"), "meter-http-error"),
        (say(b"SSH-2.0-OpenSSH_9.2\r\n"), "meter-garbage"),
        (say(b""), "meter-garbage"),
        (say(page(b"<html>\xff\xfe not an exporter</html>\n")), "meter-garbage"),
        (say(page(b"")), "meter-garbage"),
        (truncated, "meter-truncated"),
        (broken_off, "meter-truncated"),
        (endless, "meter-too-large"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_an_error_names_the_reason_when_the_exporter_misbehaves(answer: object, reason: str) -> None:
    """Each failure is a MeterError with its own slug, at opening and at reading."""
    with exporter(answer, totals(1), answer) as served:  # type: ignore[arg-type]
        clock = ManualClock()
        meter = ScaphandreMeter(served.url, timeout_seconds=1.0, clock_ns=time.monotonic_ns)
        with pytest.raises(MeterError) as caught:
            meter.open()
        assert caught.value.reason == reason
        assert served.url in str(caught.value)
        meter = ScaphandreMeter(served.url, timeout_seconds=1.0, clock_ns=lambda: time.monotonic_ns() + clock.now_ns)
        meter.open()
        meter.read()
        clock.advance(2.2)
        with pytest.raises(MeterError) as caught:
            meter.read()
        assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("head", "hint"),
    [
        ("404 Not Found", "answered HTTP 404; check the path of its URL."),
        ("302 Found\r\nlocation: /elsewhere", "answered HTTP 302; name the address that it leads to."),
        ("500 Internal Server Error", "answered HTTP 500."),
    ],
)
def test_an_error_says_what_to_do_when_there_is_no_page_at_the_url(head: str, hint: str) -> None:
    """A path that is not there, and one that has moved, are the user's to mend."""
    with exporter(say(page(b"", head))) as served, pytest.raises(MeterError) as caught:
        ScaphandreMeter(served.url).open()
    assert str(caught.value).endswith(hint)


def test_the_connection_is_dropped_when_the_body_passes_the_bound() -> None:
    """A gigabyte is not taken in: the exporter's end of the connection breaks soon after the bound."""
    sent = []

    def gigabyte(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n")
        for _ in range(1000):
            connection.sendall(b"x" * 1_000_000)
            sent.append(1_000_000)

    with exporter(gigabyte) as served, pytest.raises(MeterError) as caught:
        ScaphandreMeter(served.url).open()
    assert caught.value.reason == "meter-too-large"
    assert sum(sent) < 3 * MAX_BODY_BYTES


def test_an_error_says_what_to_do_when_nobody_listens() -> None:
    """A refused connection is told from a hanging one."""
    with pytest.raises(MeterError, match="is the exporter running") as caught:
        ScaphandreMeter(f"http://127.0.0.1:{free_port()}/metrics").open()
    assert caught.value.reason == "meter-refused"


def test_credentials_are_sent_but_never_shown_when_the_url_has_them(caplog: pytest.LogCaptureFixture) -> None:
    """Neither errors with their whole traceback, nor logs, nor repr hold the password."""
    with exporter(say(page(b"", "401 Unauthorized"))) as served, caplog.at_level(logging.DEBUG):
        url = served.url.replace("//", "//joule:pa%40ss-word@") + "?token=hush"
        meter = ScaphandreMeter(url)
        with pytest.raises(MeterError) as caught:
            meter.open()
        assert b"Authorization: Basic am91bGU6cGFAc3Mtd29yZA==" in served.requests[0]
        assert b"token=hush" in served.requests[0]
    refused = ScaphandreMeter(f"http://joule:pa%40ss-word@127.0.0.1:{free_port()}/metrics?token=hush")
    with pytest.raises(MeterError) as caught_refused:
        refused.open()
    told = [
        repr(meter),
        repr(refused),
        meter.url,
        *(record.getMessage() for record in caplog.records if record.name.startswith("otel_llm")),
    ]
    told += ["".join(traceback.format_exception(error.value)) for error in (caught, caught_refused)]
    assert caught_refused.value.__context__ is None
    assert not [text for text in told if "pa%40ss" in text or "pa@ss" in text or "hush" in text]


def test_counters_are_read_when_the_authority_of_an_own_certificate_is_named(tmp_path: Path) -> None:
    """Scaphandre speaks no TLS, so a proxy before it does, often on the same host."""
    signed = certified(tmp_path / "certificates", "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(signed.certificate, signed.key)

    def secured(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as encrypted:
            encrypted.recv(4096)
            encrypted.sendall(page(totals(1)))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/metrics"
        answering = threading.Thread(target=lambda: secured(listener.accept()[0]))
        answering.start()
        channels = ScaphandreMeter(url, ca_file=str(signed.authority)).open()
        answering.join()
    assert [channel.id for channel in channels] == ["package-0"]


def test_an_authority_that_is_not_there_is_refused_at_once() -> None:
    """By a line that names option and value."""
    with pytest.raises(ValueError, match=r"ca_file='/nowhere/ca.pem'"):
        ScaphandreMeter("https://gpu-box:8080/metrics", ca_file="/nowhere/ca.pem")


@pytest.mark.parametrize("url", ["", "localhost:8080", "ftp://host/x", "http://", "http://user:secret@", "http://h:x/"])
def test_a_wrong_url_is_refused_at_once_when_the_meter_is_made(url: str) -> None:
    """The message shows how an address looks, not what was given: that may hold a password."""
    with pytest.raises(ValueError, match="http://host:8080/metrics") as caught:
        ScaphandreMeter(url)
    assert "secret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("interval_seconds", [0.0, 1.0, 2.19, float("nan")])
def test_a_faster_poll_is_refused_when_the_meter_is_made(interval_seconds: float) -> None:
    """Nobody may freeze an exporter by a setting."""
    with pytest.raises(ValueError, match=r"2\.2"):
        ScaphandreMeter(interval_seconds=interval_seconds)


def test_instrumentation_is_suppressed_when_the_exporter_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own request must not appear as a span in the user's traces."""
    import requests

    seen = []
    send = requests.Session.send

    def spy(*args: object, **kwargs: object) -> object:
        seen.append(is_instrumentation_enabled())
        return send(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(requests.Session, "send", spy)
    with exporter(totals(1)) as served:
        opened(served.url)
    assert seen == [False]
    assert is_instrumentation_enabled()
    assert not trace.get_current_span().get_span_context().is_valid


def test_a_proxy_is_not_asked_when_the_exporter_is_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """A company's proxy in the environment knows nothing of this machine's loopback."""
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with exporter(totals(1)) as served:
        assert ScaphandreMeter(served.url).open()


def test_an_error_is_a_meters_when_the_certificates_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever requests raises before it has sent anything is a MeterError too."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere/ca.pem")
    with pytest.raises(MeterError) as caught:
        ScaphandreMeter("https://127.0.0.2:1/metrics").open()
    assert caught.value.reason == "meter-refused"
    assert "OSError" in str(caught.value)


def test_memory_is_bounded_when_the_page_repeats_one_counter() -> None:
    """Only so many samples are kept, however many the page holds."""
    with exporter(f"{HOST_ENERGY} 1\n".encode() * (MAX_SAMPLES * 2)) as served:
        scrape = Exporter(served.url).scrape(COUNTER_FAMILIES)
    assert len(scrape.content) == MAX_SAMPLES


def test_the_meter_starts_afresh_when_it_is_opened_again() -> None:
    """After close nothing of the former life counts as seen."""
    with exporter(totals(5)) as served:
        clock = ManualClock()
        meter = opened(served.url, clock)
        meter.read()
        meter.close()
        meter.close()
        meter.open()
        assert values(meter.read()) == {"package-0": 5}


def test_no_counters_are_found_when_the_page_is_empty() -> None:
    """An empty page is no host of zero joules."""
    assert counters([]) == Counters({}, None, None)


def test_meters_have_the_same_source_when_they_ask_the_same_exporter() -> None:
    """Of such only one may be read, as two would freeze it."""
    url = "http://one:8080/metrics"
    assert ScaphandreMeter(url).source == ScaphandreMeter(url, process="ollama").source
    others = ["http://two:8080/metrics", "http://one:8081/metrics", "http://me:secret@one:8080/metrics"]
    assert all(ScaphandreMeter(other).source != ScaphandreMeter(url).source for other in others)

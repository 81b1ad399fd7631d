"""The meter that asks a Prometheus, on what a real one scraped from two real exporters."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from otel_llm_energy.meters import MeterError, PrometheusMeter, meter_at
from otel_llm_energy.quantities import Reading
from tests.meters.prometheus_replay import Replay, Time, replaying

SECRET = "s3cr3t"


@pytest.fixture
def replay() -> Iterator[Replay]:
    """The recorded Prometheus, just after the second scrape of each of its two hosts."""
    with replaying() as replay:
        yield replay


def by_channel(readings: Sequence[Reading]) -> dict[str, list[int]]:
    """The counter's values of each channel."""
    values: dict[str, list[int]] = {}
    for reading in readings:
        values.setdefault(reading.channel_id, []).append(reading.energy_uj)
    return values


@pytest.mark.parametrize(("instance", "watts"), [("one:8080", 30.0), ("two:8080", 60.0)])
def test_each_host_has_its_own_counters_when_one_prometheus_scrapes_two(
    instance: str, watts: float, replay: Replay
) -> None:
    """Sockets and memory of the chosen host, and nothing of the other."""
    time = Time(replay)
    meter = time.meter(instance=instance)
    channels = meter.open()
    assert {channel.id for channel in channels} == {"package-0", "package-1", "package-0/dram", "package-1/dram"}
    assert {channel.meter for channel in channels} == {"prometheus"}
    readings = list(meter.read())
    for _ in range(3):
        time.pass_by(3.0)
        readings += meter.read()
    package = [reading for reading in readings if reading.channel_id == "package-0"]
    assert len(package) == 4
    length_ns = package[-1].latest_ns - package[0].latest_ns
    assert (package[-1].energy_uj - package[0].energy_uj) / length_ns * 1e3 == pytest.approx(watts, rel=0.02)


def test_sockets_are_read_when_the_hosts_own_counter_is_that_of_the_platform(replay: Replay) -> None:
    """Where there is psys the host's counter says so in a label, which those of the sockets do not have."""
    replay.keep("one:8080")
    for each in replay.series:
        if each["metric"]["__name__"].startswith("scaph_host_"):
            each["metric"] = {**each["metric"], "value_source": "powercap_rapl_psys"}
    time = Time(replay)
    meter = time.meter()
    assert {channel.id for channel in meter.open()} == {"package-0", "package-1", "package-0/dram", "package-1/dram"}
    meter.read()
    time.pass_by(3.0)
    assert set(by_channel(meter.read())) == {"package-0", "package-1", "package-0/dram", "package-1/dram"}


def test_every_scrape_is_a_reading_when_it_was_not_asked_for_long(replay: Replay) -> None:
    """Raw samples, not a rate between two polls."""
    time = Time(replay)
    meter = time.meter(instance="one:8080")
    meter.open()
    meter.read()
    time.pass_by(9.0)
    assert {name: len(values) for name, values in by_channel(meter.read()).items()}["package-0"] == 3
    assert meter.read() == []


def test_readings_are_dated_by_the_scrape_when_nobody_else_asks_the_exporter(replay: Replay) -> None:
    """Prometheus' time of the request, and how long the scrape took, on our clock."""
    time = Time(replay)
    meter = time.meter(instance="one:8080")
    meter.open()
    meter.read()
    time.pass_by(3.0)
    readings = meter.read()
    scraped_ns = time.clock.now_ns - round((replay.now - replay.times("one:8080")[2]) * 1e9)
    assert {channel.channel_id for channel in readings} == {
        "package-0",
        "package-1",
        "package-0/dram",
        "package-1/dram",
    }
    for reading in readings:
        assert abs(reading.earliest_ns - scraped_ns) < 1_000_000
        assert 10_000_000 < reading.latest_ns - reading.earliest_ns < 100_000_000, "the recorded scrape took 30 ms"


def test_readings_may_be_a_second_later_than_the_scrape_when_it_is_not_known_how_long_it_took(replay: Replay) -> None:
    """Whoever writes to another store may leave that out; a scrape of Scaphandre takes a tenth of a second or so."""
    replay.series = [each for each in replay.series if each["metric"]["__name__"] != "scrape_duration_seconds"]
    time = Time(replay)
    meter = time.meter(instance="one:8080")
    meter.open()
    meter.read()
    time.pass_by(4.0)
    readings = meter.read()
    assert readings
    assert all(reading.latest_ns - reading.earliest_ns >= 1_000_000_000 for reading in readings)


@pytest.mark.parametrize(("there_seconds", "back_seconds"), [(0.5, 0.1), (0.1, 0.5), (0.0, 0.0)])
def test_the_scrape_was_within_the_time_of_its_readings_when_the_prometheus_is_slow_to_answer(
    there_seconds: float, back_seconds: float, replay: Replay
) -> None:
    """It is not known when in a request its clock was looked at; no more than that is allowed for."""
    time = Time(replay)
    time.requests_take(there_seconds, back_seconds)
    meter = time.meter(instance="one:8080")
    meter.open()
    meter.read()
    time.pass_by(6.0)
    readings = meter.read()
    ahead_seconds = replay.now - time.clock.now_ns / 1e9
    scraped_ns = [round((at - ahead_seconds) * 1e9) for at in replay.times("one:8080")]
    assert readings
    for reading in readings:
        (at_ns,) = [at for at in scraped_ns if abs(at - reading.latest_ns) < 1_500_000_000]
        assert reading.earliest_ns <= at_ns + 1_000_000 <= reading.latest_ns + 2_000_000
        length_seconds = (reading.latest_ns - reading.earliest_ns) / 1e9
        assert length_seconds < there_seconds + back_seconds + 0.1, "the recorded scrape took 30 ms"


@pytest.mark.parametrize("ahead_seconds", [-3600.0, 0.25, 7 * 86400.0])
def test_times_are_ours_when_the_prometheus_has_another_clock(ahead_seconds: float, replay: Replay) -> None:
    """Its clock is asked for, so no host's clock needs to be right."""
    replay.ahead_seconds = ahead_seconds
    time = Time(replay)
    meter = time.meter(instance="one:8080")
    meter.open()
    (reading, *_) = meter.read()
    scraped_ns = time.clock.now_ns - round((replay.now - replay.times("one:8080")[1]) * 1e9)
    assert reading.earliest_ns <= scraped_ns + 1_000_000 <= reading.latest_ns + 2_000_000
    assert reading.latest_ns <= time.clock.now_ns, "nothing was read in the future"


def test_times_are_right_again_when_the_clock_of_the_prometheus_was_set(replay: Replay) -> None:
    """What was learned of its old time says nothing of the new one."""
    time = Time(replay)
    meter = time.meter(instance="one:8080")
    meter.open()
    meter.read()
    interval = replay.times("one:8080")[2] - replay.times("one:8080")[1]
    time.pass_by(interval)
    replay.ahead_seconds += 4.0
    readings = meter.read()
    scraped_ns = time.clock.now_ns - round((replay.now - replay.times("one:8080")[2]) * 1e9)
    assert readings
    assert abs(readings[-1].latest_ns - scraped_ns) < 300_000_000


def test_a_sample_is_left_out_when_it_is_no_number(replay: Replay) -> None:
    """Prometheus has NaN for what it could not work out."""
    for each in replay.series:
        if each["metric"]["__name__"] in ("scaph_domain_energy_microjoules", "scrape_duration_seconds"):
            each["values"] = [[at, "NaN"] for at, _ in each["values"]]
    meter = Time(replay).meter(instance="one:8080")
    assert {channel.component for channel in meter.open()} == {"cpu"}
    assert meter.read()


@pytest.mark.parametrize("interval", [3, 15, 60])
def test_polls_follow_the_interval_when_prometheus_scrapes_more_seldom(interval: int, replay: Replay) -> None:
    """It is measured, not set; a reading of this instant may take a whole interval and a poll."""
    replay.keep("one:8080")
    replay.stretch(interval / 3)
    replay.now = replay.times("one:8080")[3] + 1
    meter = Time(replay).meter()
    meter.open()
    assert 1 <= meter.pace.open_seconds <= 5
    assert meter.pace.idle_seconds <= interval
    assert interval < meter.pace.longest_seconds <= interval + 6.1


def test_polls_follow_the_interval_when_there_was_one_scrape_at_first(replay: Replay) -> None:
    """App and Prometheus are started together: how seldom it scrapes shows later."""
    replay.keep("one:8080")
    replay.stretch(60 / 3)
    replay.now = replay.times("one:8080")[0] + 1
    time = Time(replay)
    meter = time.meter()
    meter.open()
    time.pass_by(3 * 60)
    meter.read()
    assert 60 < meter.pace.longest_seconds <= 66.1


def test_a_host_must_be_chosen_when_there_are_several(replay: Replay) -> None:
    """The message names them, and how to choose."""
    with pytest.raises(MeterError, match=r"one:8080, two:8080.*instance=") as caught:
        Time(replay).meter().open()
    assert caught.value.reason == "meter-ambiguous"


def test_a_host_must_be_chosen_when_the_other_was_scraped_almost_an_interval_ago(replay: Replay) -> None:
    """Hosts are scraped one after the other; which of them was the last says nothing."""
    interval = replay.times("one:8080")[2] - replay.times("one:8080")[1]
    for each in replay.series:
        if each["metric"]["instance"] == "two:8080":
            times = [at + 0.05 * interval for at in replay.times("one:8080")]
            each["values"] = [[at, text] for at, (_, text) in zip(times, each["values"], strict=False)]
    replay.now = replay.times("one:8080")[3] + 0.01 * interval
    with pytest.raises(MeterError, match="one:8080, two:8080") as caught:
        Time(replay).meter().open()
    assert caught.value.reason == "meter-ambiguous"


def test_what_tells_them_apart_is_shown_when_one_host_is_scraped_twice(replay: Replay) -> None:
    """By two jobs, or two replicas behind one Thanos: the instance is the same."""
    replay.keep("one:8080")
    replay.series = [
        {**each, "metric": {**each["metric"], "replica": replica}} for each in replay.series for replica in "ab"
    ]
    with pytest.raises(MeterError, match=r"replica=a, replica=b\. .*labels=") as caught:
        Time(replay).meter().open()
    assert caught.value.reason == "meter-ambiguous"
    assert Time(replay).meter(labels={"replica": "a"}).open()


def test_the_only_host_is_kept_when_another_one_is_scraped_later(replay: Replay) -> None:
    """Who named none means the one that there was: the new one's energy is not mixed in."""
    both = replay.series
    replay.keep("one:8080")
    time = Time(replay)
    meter = time.meter()
    meter.open()
    meter.read()
    replay.series = both
    time.pass_by(3.0)
    (value,) = by_channel(meter.read())["package-0"]
    assert value < 700_000_000, "the other host's counter is above that"


def test_a_host_must_be_chosen_when_another_one_with_the_same_labels_is_scraped_later(replay: Replay) -> None:
    """Labels that were of one host alone when the meter was opened are of two now; which counters are whose?"""
    both = replay.series
    replay.keep("one:8080")
    time = Time(replay)
    meter = time.meter(labels={"job": both[0]["metric"]["job"]})
    meter.open()
    replay.series = both
    time.pass_by(3.0)
    with pytest.raises(MeterError, match="one:8080, two:8080") as caught:
        meter.read()
    assert caught.value.reason == "meter-ambiguous"


def test_a_new_exporter_goes_on_when_the_host_was_chosen_by_another_label(replay: Replay) -> None:
    """In Kubernetes the instance is the pod's address, which changes; the node stays."""
    replay.keep("one:8080")
    old, new = [], []
    for each in replay.series:
        labels = {**each["metric"], "node": "gpu-1"}
        old.append({"metric": labels, "values": each["values"][:3]})
        new.append({"metric": {**labels, "instance": "10.0.0.9:8080"}, "values": each["values"][3:]})
    replay.series = [*old, *new]
    time = Time(replay)
    meter = time.meter(labels={"node": "gpu-1"})
    meter.open()
    meter.read()
    time.pass_by(9.0)
    assert len(by_channel(meter.read())["package-0"]) == 3


def test_processes_come_with_the_counters_when_one_is_named(replay: Replay) -> None:
    """The host's power at each scrape, and each process once."""
    time = Time(replay)
    meter = time.meter(instance="one:8080", process="scaphandre")
    meter.open()
    time.pass_by(3.0)
    meter.read()
    powers = meter.host_powers()
    assert [round((power.microwatts or 0) / 1e6) for power in powers] == [55, 55]
    assert all(process.exe.endswith("/scaphandre") for process in powers[-1].processes)
    assert len({process.pid for process in powers[-1].processes}) == len(powers[-1].processes)
    unnamed = time.meter(instance="one:8080")
    unnamed.open()
    assert unnamed.host_powers() == ()
    assert not any("process" in path for path, _ in replay.requests[-3:]), "not asked for in vain"


def test_the_meter_says_so_when_prometheus_gets_nothing_from_the_host(replay: Replay) -> None:
    """After a few intervals, and not before."""
    time = Time(replay)
    meter = time.meter(instance="one:8080")
    meter.open()
    time.pass_by(9.0)
    meter.read()
    time.pass_by(10.0)
    meter.read()
    time.pass_by(10.0)
    with pytest.raises(MeterError, match="Is its Scaphandre up") as caught:
        meter.read()
    assert caught.value.reason == "meter-stale"


def test_the_meter_says_so_when_all_that_prometheus_has_of_the_host_is_how_long_failed_scrapes_took(
    replay: Replay,
) -> None:
    """It stores that of each scrape, whatever came of it."""
    replay.keep("one:8080")
    last = replay.times("one:8080")[1]
    for each in replay.series:
        if each["metric"]["__name__"] != "scrape_duration_seconds":
            each["values"] = [value for value in each["values"] if value[0] <= last]
    time = Time(replay)
    meter = time.meter()
    meter.open()
    time.pass_by(14.0)
    with pytest.raises(MeterError) as caught:
        meter.read()
    assert caught.value.reason == "meter-stale"


def test_the_meter_says_so_when_scrapes_freeze_the_exporter(replay: Replay) -> None:
    """Scraped every second Scaphandre repeats itself for ever: no reading, and how to mend it."""
    replay.keep("one:8080")
    for each in replay.series:
        each["values"] = [[at, each["values"][0][1]] for at, _ in each["values"]]
    replay.now = replay.times("one:8080")[0] + 0.5
    time = Time(replay)
    meter = time.meter()
    meter.open()
    meter.read()
    time.pass_by(12.0)
    with pytest.raises(MeterError, match="every 5 s") as caught:
        meter.read()
    assert caught.value.reason == "meter-frozen"


def test_an_error_says_what_to_do_when_there_is_no_such_host(replay: Replay) -> None:
    """With what was asked for."""
    with pytest.raises(MeterError, match=r"three:8080.*scrape") as caught:
        Time(replay).meter(instance="three:8080").open()
    assert caught.value.reason == "meter-no-data"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((401, b"Unauthorized"), "meter-http-error"),
        ((200, b"<html>Grafana</html>"), "meter-garbage"),
        ((200, b'{"status":"success","data":{"result":{"x":1}}}'), "meter-garbage"),
        ((200, b"[" * 100_000), "meter-garbage"),
    ],
)
def test_an_error_is_a_meters_when_something_else_answers(
    answer: tuple[int, bytes], reason: str, replay: Replay
) -> None:
    """At opening and later."""
    time = Time(replay)
    meter = time.meter(instance="one:8080")
    meter.open()
    replay.broken = answer
    for attempt in (meter.read, time.meter().open):
        with pytest.raises(MeterError) as caught:
            attempt()
        assert caught.value.reason == reason


@pytest.mark.parametrize("form", ["url", "token", "header"])
def test_credentials_are_sent_but_never_shown(form: str, replay: Replay, caplog: pytest.LogCaptureFixture) -> None:
    """Basic, bearer, or any header: not in an error with its whole traceback, nor in a log, nor in repr."""
    url = replay.url.replace("//", f"//joule:{SECRET}@") if form == "url" else replay.url
    options: dict[str, Any] = {
        "url": {},
        "token": {"bearer_token": SECRET},
        "header": {"headers": {"X-Scope-OrgID": "team", "Authorization": f"Key {SECRET}"}},
    }[form]
    with caplog.at_level(logging.DEBUG):
        meter = PrometheusMeter(url, **options)
        with pytest.raises(MeterError) as caught:
            meter.open()
    sent = replay.requests[0][1]
    expected = {"url": "Basic am91bGU6czNjcjN0", "token": f"Bearer {SECRET}", "header": f"Key {SECRET}"}[form]
    assert sent["Authorization"] == expected
    assert sent.get("X-Scope-OrgID") == ("team" if form == "header" else None)
    told = [repr(meter), meter.url, "".join(traceback.format_exception(caught.value))]
    told += [record.getMessage() for record in caplog.records if record.name.startswith("otel_llm")]
    assert not [text for text in told if SECRET in text]


def test_a_url_says_all_when_it_is_given_as_text(replay: Replay) -> None:
    """Host, labels and process, so that the environment can name them; it reads what the object reads."""
    meter = meter_at(f"prometheus+{replay.url}/?instance=one%3A8080&job=scaphandre#scaphandre")
    assert isinstance(meter, PrometheusMeter)
    assert meter.process == "scaphandre"
    assert meter.source == PrometheusMeter(replay.url, instance="one:8080", labels={"job": "scaphandre"}).source
    assert meter.source != PrometheusMeter(replay.url, instance="two:8080").source
    for wrong in ("prometheus+http://x?in-stance=1", "prometheus+http://x?instance=", "prometheus+ftp://x"):
        with pytest.raises(ValueError, match="url"):
            meter_at(wrong)
    with pytest.raises(ValueError, match="no query"):
        PrometheusMeter("http://x:9090?instance=one")


def test_the_meter_is_closed_when_it_was_never_opened(replay: Replay) -> None:
    """Or closed, or after an open that failed; and it starts afresh when it is opened again."""
    time = Time(replay)
    meter = time.meter(instance="one:8080")
    with pytest.raises(MeterError) as caught:
        meter.read()
    assert caught.value.reason == "meter-closed"
    meter.open()
    first = by_channel(meter.read())
    meter.close()
    meter.open()
    assert by_channel(meter.read()) == first


def test_token_is_sent_when_the_user_keeps_a_password_for_the_host(
    replay: Replay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of .netrc does not take its place; it is sent where no other was given."""
    (tmp_path / "netrc").write_text("default login joule password kept\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("NO_PROXY", "*")
    url = replay.url.replace("127.0.0.1", "127.1")  # for which the environment is heeded, as for another host
    PrometheusMeter(url, instance="one:8080", bearer_token=SECRET).open()
    assert {headers["Authorization"] for _, headers in replay.requests} == {f"Bearer {SECRET}"}
    replay.requests.clear()
    PrometheusMeter(url, instance="one:8080").open()
    assert {headers["Authorization"] for _, headers in replay.requests} == {"Basic am91bGU6a2VwdA=="}


@pytest.mark.parametrize("named", [True, False])
def test_host_is_found_when_its_labels_are_not_plain_words(named: bool, replay: Replay) -> None:
    """PromQL has quotes around a name with dots, as OpenTelemetry's are, and no escapes of surrogates."""
    replay.keep("one:8080")
    for each in replay.series:
        each["metric"] = {**each["metric"], "k8s.node.name": "gpu-\N{ROCKET}"}
    url = f"prometheus+{replay.url}" + ("?k8s.node.name=gpu-%F0%9F%9A%80" if named else "")
    meter = meter_at(url)
    meter.open()
    meter.read()
    queries = [parse_qs(urlsplit(path).query)["query"][0] for path, _ in replay.requests]
    assert '"k8s.node.name"="gpu-\N{ROCKET}"' in queries[-1]

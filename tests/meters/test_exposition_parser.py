"""The line parser, on what the real exporter said and on what nobody should say."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_llm_energy.meters.exposition import MAX_LINE_BYTES, Sample, parse
from otel_llm_energy.meters.scaphandre_counters import COUNTER_FAMILIES

FIXTURES = Path(__file__).with_name("fixtures")
PROCESS_POWER = "scaph_process_power_consumption_microwatts"
NAME = "scaph_domain_energy_microjoules"


def chunked(body: bytes, size: int) -> list[bytes]:
    """The body as it may arrive."""
    return [body[at : at + size] for at in range(0, len(body), size)]


def test_only_wanted_samples_are_kept_when_the_page_is_real() -> None:
    """Of a real page just the counters asked for come out, exactly, in spite of blank lines and leading zeros."""
    samples = list(parse([(FIXTURES / "two-sockets-1.txt").read_bytes()], COUNTER_FAMILIES))
    assert {sample.name for sample in samples} == COUNTER_FAMILIES
    assert len(samples) == 7
    assert all(isinstance(sample.value, int) and sample.value > 1_000_000 for sample in samples)
    assert {sample.labels.get("domain_name") for sample in samples} == {None, "dram", "core"}


def test_process_power_is_read_when_asked_for() -> None:
    """A process line is read whole, with braces, commas and spaces in its command line."""
    samples = list(parse([(FIXTURES / "two-sockets-1.txt").read_bytes()], {PROCESS_POWER}))
    hostile = [sample for sample in samples if "brace" in sample.labels["cmdline"]]
    assert len(hostile) == 1
    assert hostile[0].labels["exe"] == "/usr/bin/dash"
    assert {sample.labels["pid"] for sample in samples} >= {"2", "3"}


@given(st.integers(1, 400))
def test_samples_are_the_same_when_chunks_cut_lines(size: int) -> None:
    """How the body was cut into chunks does not show."""
    body = (FIXTURES / "wrap-1.txt").read_bytes()
    assert list(parse(chunked(body, size), COUNTER_FAMILIES)) == list(parse([body], COUNTER_FAMILIES))


@given(st.permutations([("domain_name", "dram"), ("domain_id", "0"), ("socket_id", "1")]), st.integers(0, 2**64 - 1))
def test_label_order_does_not_matter_when_it_is_random(labels: list[tuple[str, str]], value: int) -> None:
    """Scaphandre shuffles labels at every request; names, labels and the whole number are what they are."""
    text = ",".join(f'{key}="{word}"' for key, word in labels)
    (sample,) = parse([f"{NAME}{{{text}}} {value:020d}\n\n".encode()], {NAME})
    assert sample == Sample(NAME, dict(labels), value)


@given(
    st.dictionaries(
        st.from_regex(r"[a-z_]{1,8}", fullmatch=True),
        st.text(st.characters(exclude_characters="\r", exclude_categories=["Cs"])),
        max_size=4,
    )
)
def test_label_values_survive_when_they_are_escaped(labels: dict[str, str]) -> None:
    """Any label value, escaped as the format asks, comes back as it was."""
    escaped = {key: text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"') for key, text in labels.items()}
    line = NAME + "{" + ",".join(f'{key}="{text}"' for key, text in escaped.items()) + "} 7\n"
    (sample,) = parse([line.encode()], {NAME})
    assert sample.labels == labels


@given(st.lists(st.binary(max_size=60)))
def test_nothing_is_raised_when_the_page_is_noise(chunks: list[bytes]) -> None:
    """Noise gives no samples of other names and no exception."""
    assert all(sample.name in COUNTER_FAMILIES for sample in parse(chunks, COUNTER_FAMILIES))


@given(st.binary(max_size=60))
def test_nothing_is_raised_when_a_wanted_name_is_followed_by_noise(noise: bytes) -> None:
    """What comes after a wanted name may be anything."""
    for sample in parse([NAME.encode() + noise + b"\n"], {NAME}):
        assert sample.value == sample.value


@given(st.integers(0, 2000))
def test_no_value_is_cut_short_when_the_body_is_truncated(length: int) -> None:
    """A last line without its end is dropped: half a number is a wrong number."""
    body = b"".join(
        line + b"\n"
        for line in (FIXTURES / "two-sockets-1.txt").read_bytes().split(b"\n")
        if line.startswith((b"scaph_socket", b"scaph_host"))
    )
    whole = list(parse([body], COUNTER_FAMILIES))
    part = list(parse([body[:length]], COUNTER_FAMILIES))
    assert part == whole[: len(part)]


@pytest.mark.parametrize("value", ["", "NaN", "+Inf", "-Inf", "1_000", "0x10", "9" * 21, "seven", '"7"', "7 8 9"])
def test_a_line_is_passed_over_when_its_value_is_no_number(value: str) -> None:
    """Neither infinity nor prose is a reading."""
    assert list(parse([f"{NAME} {value}\n".encode()], {NAME})) == []


def test_a_float_is_read_when_the_value_has_a_fraction() -> None:
    """Process power is a float, and a timestamp may follow a value."""
    assert [sample.value for sample in parse([b"p 31411327.5\np 1e3 1700000000000\n"], {"p"})] == [31411327.5, 1000.0]


def test_the_next_line_is_read_when_one_has_no_end_in_sight() -> None:
    """An overlong line is dropped without being kept in memory, and does not take the next one along."""
    chunks = [NAME.encode() + b'{a="', *[b"x" * 65536] * (MAX_LINE_BYTES // 65536 + 2), b'"} 1\n', b"p 7\n"]
    assert [sample.value for sample in parse(chunks, {NAME, "p"})] == [7]

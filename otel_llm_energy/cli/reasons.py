"""The reasons of unavailable and degraded energy, and of energy that is nobody's, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

REASONS: Final[Mapping[str, str]] = {
    "coarse-meter": "the bounds are further apart than half of the figure: readings are rare for so short a call",
    "no-idle-baseline": "the idle power was not known yet; energy was shared by time alone",
    "idle-under-load": "idle power was learned while other programs were busy all the time; it is in doubt",
    "part-unknown": "the server's part of the machine's work is not known: it is hidden, or was found too late",
    "gap": "part of the call's work lies between no two readings",
    "late": "the server named its working time after the energy of that time was shared out",
    "board-unusable": "processes of this host cannot share their metering, and others may call the same server",
    "board-mismatch": "a process of this host has other settings or another version; neither sees the other's calls",
    "relay": "what listens at the address passes calls on to another server, or hardly worked meanwhile; who did the "
    "work is not known for certain",
    "not-listening": "nothing listens at the address here, though it answered: the network passes calls on",
    "max-hold": "the reading that covers the call did not come within max_hold",
    "hold-limit": "too many spans were held",
    "not-held": "max_hold is 0, so no reading was waited for",
    "queue-full": "the next span processor is too slow",
    "flush": "a flush could not wait for the next reading",
    "shutdown": "a shutdown could not wait for the next reading",
    "no-meter": "no meter has been read",
    "no-reading": "the meter has no reading that covers the call",
    "counter-silent": "one of the meter's counters stands still, or cannot be read any more",
    "not-on-gpu": "only GPUs are metered, and the server uses none",
    "no-work": "the server did no work on the call",
    "too-long": "the call, or what was measured by hand, was open for more than an hour",
    "remote": "the server is on another machine, and no meter is named for it (servers=)",
    "server_unknown": "nothing says which server answered",
    "guest-cpu": "this is a virtual machine, and its counters would be the whole host's",
    "meter-not-found": "the meter is not on this machine",
    "meter-permission": "the counters may not be read",
    "meter-unreadable": "the counters gave no number",
    "meter-refused": "the exporter does not answer",
    "meter-tls": "the exporter's certificate is not trusted, or it does not speak TLS",
    "meter-timeout": "the exporter did not answer in time",
    "meter-http-error": "the exporter answers with an HTTP error",
    "meter-truncated": "the exporter's answer broke off",
    "meter-garbage": "what answers is not the exporter",
    "meter-too-large": "the exporter's answer is too large",
    "nvml-not-installed": "GPUs are read through nvidia-ml-py, which is not installed",
    "gpu-no-driver": "NVIDIA's driver is not there, or does not match its library",
    "gpu-mig": "the GPU is split into instances (MIG), whose energy is not counted apart",
    "gpu-lost": "a GPU does not answer any more",
    "gpu-unsupported": "the GPU tells neither its energy nor its power",
    "gpu-error": "the GPU's driver answers with an error",
    "taken": "the meter is read for servers that the user named, and by nobody else",
    "meter-frozen": "the exporter's figures stand still: something else asks it too often",
    "meter-no-data": "the Prometheus has no counter of this host",
    "meter-ambiguous": "the Prometheus has several hosts, and none was chosen",
    "meter-stale": "the meter's newest figures are old: what writes them has stopped",
}
"""Values of ``llm.energy.reason``."""

UNATTRIBUTED: Final[Mapping[str, str]] = {
    "idle": "drawn anyway, while no call was at work",
    "other": "above idle, by other processes",
    "outside": "above idle, by the server, outside of these calls",
    "late": "shared out for calls that turned out to be elsewhere, or whose process has ended",
    "gap": "metered, but not to be placed in time",
    "rounding": "what divisions leave over",
}
"""Why metered energy is no call's."""

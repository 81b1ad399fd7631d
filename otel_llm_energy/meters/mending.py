"""For a meter that is left out: the line that would bring it back, where there is one beyond what the message says."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from otel_llm_energy.meters.scrape import LOOPBACK_HOSTS

_BY_METER: Final[Mapping[tuple[str, str], str]] = {
    ("rapl", "meter-permission"): "sudo chmod -R a+r {place}/intel-rapl*/   (until the next start)",
    ("rapl", "meter-not-found"): "export OTEL_LLM_ENERGY_POWERCAP_ROOT=/path/that/holds/intel-rapl:0",
    ("scaphandre", "meter-refused"): "scaphandre prometheus --port {port} &   or, if it is elsewhere,   "
    "{setting}http://...",
    ("scaphandre", "meter-timeout"): "{setting}http://...   (an exporter that answers)",
    ("scaphandre", "meter-garbage"): "{setting}http://host:port/metrics   (Scaphandre's own page)",
    # Not to the file that was named: it may be anything, and would be written over.
    ("scaphandre-stream", "meter-garbage"): "scaphandre json --step 0 --step-nano 500000000 --file NEW.json &   (a "
    "file of its own; then name that one)",
    ("scaphandre-stream", "meter-stale"): "scaphandre json --step 0 --step-nano 500000000 --file {place} &",
}
_BY_REASON: Final[Mapping[str, str]] = {
    "guest-cpu": "Run Scaphandre with --vm in this guest (the host must share its counters), or name counters that are "
    "this machine's own: export OTEL_LLM_ENERGY_POWERCAP_ROOT=/path/to/powercap",
    "taken": "servers={'localhost:11434': ScaphandreMeter(url, process='ollama')}   (this machine's servers, too)",
    "meter-tls": "ScaphandreMeter(url, ca_file='/path/authority.pem') (PrometheusMeter, too) or, if it is elsewhere: "
    "export REQUESTS_CA_BUNDLE=...",
    "nvml-not-installed": "pip install 'otel-llm-energy[nvidia]'",
    "gpu-no-driver": "nvidia-smi   (it shows what is wrong with the driver; in a container: docker run --gpus all ...)",
    "gpu-lost": "nvidia-smi   (then restart the machine, or reset the GPU)",
    "meter-no-data": "In prometheus.yml a job that scrapes Scaphandre: scrape_interval: 5s, targets: ['host:8080']",
    "meter-ambiguous": "prometheus+http://host:9090?instance=HOST:8080   (one of the hosts that are named)",
    "meter-frozen": "Let one client ask the exporter, every 2.2 s or slower",
}
_SETTING_OF_NAME: Final = "export OTEL_LLM_ENERGY_SCAPHANDRE_URL="
_SETTING_OF_ADDRESS: Final = "in meters=, or by export OTEL_LLM_ENERGY_METERS="


def mending(name: str, reason: str, message: str, *, by_address: bool = False) -> str:
    """The line for a meter of this name that was left out for this reason; empty where there is none.

    Args:
        name: of the meter, as in `Meter.name`; one of another machine has a longer one.
        reason: the slug.
        message: begins with the place that could not be read, and a colon.
        by_address: the user gave the meter's own address; the setting for the name ``scaphandre`` does not change it.
    """
    line = _BY_METER.get((name, reason)) or _BY_REASON.get(reason, "")
    place = message.partition(": ")[0]
    if "{port}" in line:
        address = urlsplit(place)
        if address.hostname not in LOOPBACK_HOSTS:
            return ""  # nothing that is started here would answer there
        line = line.replace("{port}", str(address.port or 80))
    line = line.replace("{setting}", _SETTING_OF_ADDRESS if by_address else _SETTING_OF_NAME)
    return line.replace("{place}", shlex.quote(place))

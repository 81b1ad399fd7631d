"""For a meter that is left out, by reason: the line that would bring it back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

MENDING: Final[Mapping[str, str]] = {
    "guest-cpu": "Run Scaphandre with --vm in this guest (the host must share its counters), or name counters that are "
    "this machine's own: export OTEL_LLM_ENERGY_POWERCAP_ROOT=/path/to/powercap",
    "taken": "servers={'localhost:11434': ScaphandreMeter(url, process='ollama')}   (this machine's servers, too)",
    "meter-permission": "sudo chmod -R a+r /sys/class/powercap/intel-rapl:0/   (until the next start)",
    "meter-not-found": "export OTEL_LLM_ENERGY_POWERCAP_ROOT=/path/that/holds/intel-rapl:0",
    "meter-refused": "scaphandre prometheus --port 8080 &   or   export OTEL_LLM_ENERGY_SCAPHANDRE_URL=http://...",
    "meter-tls": "PrometheusMeter(url, ca_file='/path/to/authority.pem'), or for all: export REQUESTS_CA_BUNDLE=...",
    "meter-timeout": "export OTEL_LLM_ENERGY_SCAPHANDRE_URL=http://...   (an exporter that answers)",
    "meter-garbage": "export OTEL_LLM_ENERGY_SCAPHANDRE_URL=http://host:port/metrics   (Scaphandre's own page)",
    "nvml-not-installed": "pip install 'otel-llm-energy[nvidia]'",
    "gpu-no-driver": "nvidia-smi   (it shows what is wrong with the driver; in a container: docker run --gpus all ...)",
    "gpu-lost": "nvidia-smi   (then restart the machine, or reset the GPU)",
    "meter-stale": "scaphandre json --step 0 --step-nano 500000000 --file PATH &   (the file that you named)",
    "meter-no-data": "In prometheus.yml a job that scrapes Scaphandre: scrape_interval: 5s, targets: ['host:8080']",
    "meter-ambiguous": "prometheus+http://host:9090?instance=HOST:8080   (one of the hosts that are named)",
    "meter-frozen": "Let one client ask the exporter, every 2.2 s or slower",
}

"""Who answered a call: from an address to a process tree, and its part of the machine's activity."""

from otel_llm_energy.servers.activity import CpuActivity, process_cpu_ns
from otel_llm_energy.servers.figures import FigureActivity, Selector
from otel_llm_energy.servers.resolve import resolve, resolve_named
from otel_llm_energy.servers.server import Server

__all__ = ["CpuActivity", "FigureActivity", "Selector", "Server", "process_cpu_ns", "resolve", "resolve_named"]

"""Servers in containers of this host whose port is published: what listens here only passes calls on.

Docker's userland proxy says on its command line where to. That address belongs to the container's network namespace,
which its processes show in ``/proc/PID/net/fib_trie``; no permission is needed. Source: proc_pid_net(5), net/ipv4/
fib_trie.c of the kernel, docker-proxy's own options (``-container-ip``).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from otel_llm_energy.servers.procfs import Procfs
from otel_llm_energy.servers.programs import is_llm_server, option, program_name


def container_roots(proxy_arguments: Sequence[str], procfs: Procfs) -> list[int]:
    """The roots of the processes in the container that a docker-proxy with these arguments passes calls on to."""
    return roots_at(option(proxy_arguments, ("-container-ip",)) or "", procfs)


def roots_at(address: str, procfs: Procfs) -> list[int]:
    """The roots of the processes of this host whose network namespace has an IPv4 address.

    Where several share the address (a pod), those whose tree holds a program that runs models; empty if there are none.
    """
    try:
        if ipaddress.ip_address(address).version != 4:
            return []
    except ValueError:
        return []
    roots = procfs.roots(pid for pid in procfs.pids() if address in procfs.addresses(pid))
    if len(roots) < 2:
        return roots
    return [root for root in roots if any(runs_models(member, procfs) for member in procfs.tree(root))]


def runs_models(pid: int, procfs: Procfs) -> bool:
    """Whether it is known by its name to run models."""
    return is_llm_server(program_name(procfs.arguments(pid), procfs.short_name(pid)))

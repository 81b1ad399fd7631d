"""What is known of a study beside its rows: its plan, who took part, and that it stays the same study."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import psutil

from otel_llm_energy.machine import cpu_model
from otel_llm_energy.study import StudyError
from otel_llm_energy.study.askers import Asker
from otel_llm_energy.study.dataset import MANIFEST, read_manifest
from otel_llm_energy.study.journal import ROWS, replace_file
from otel_llm_energy.study.plan import Plan
from otel_llm_energy.study.prompts import PromptSet
from otel_llm_energy.version import __version__

_FORMAT: Final = 1


def check_same_study(folder: Path, plan: Plan, prompts: PromptSet) -> None:
    """Raises `StudyError` if the folder holds the rows of another plan, or of prompts that have changed."""
    manifest = read_manifest(folder)
    if manifest is None:
        if (folder / ROWS).stat().st_size:
            raise StudyError(f"{folder}: there are rows but no {MANIFEST}. Choose another folder with --out.")
        return
    if manifest.get("plan_digest") != plan.digest:
        differing = [key for key, value in plan.as_dict().items() if manifest["plan"].get(key) != _plain(value)]
        raise StudyError(
            f"{folder}: it holds a study with another plan ({', '.join(differing) or 'servers'} differ). "
            "Choose another folder with --out."
        )
    if manifest.get("prompts", {}).get("sha256") != prompts.sha256:
        raise StudyError(
            f"{folder}: {plan.prompts} has changed since the study began. Choose another folder with --out."
        )


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def write_manifest(folder: Path, plan: Plan, prompts: PromptSet, askers: Mapping[str, Asker], *, content: bool) -> None:
    """All that is needed to do it again: ``study collect --plan manifest.json``."""
    if (folder / MANIFEST).exists():
        return
    manifest = {
        "format": _FORMAT,
        "created_at": time.time(),
        "plan": plan.as_dict(),
        "plan_digest": plan.digest,
        "prompts": {"source": prompts.source, "sha256": prompts.sha256, "count": len(prompts.prompts)},
        "content": content,
        "client": client_facts(),
        "packages": {name: version(name) for name in ("openai", "opentelemetry-sdk", "polars", "textstat")},
        "servers": {
            f"{name} {model}": asker.facts(model) for name, asker in askers.items() for model in asker.server.models
        },
    }
    replace_file(folder / MANIFEST, json.dumps(manifest, indent=1).encode())


def client_facts() -> dict[str, Any]:
    """Hardware and software of this machine, as columns of a row."""
    return {
        "client_cpu": cpu_model() or platform.processor() or platform.machine(),
        "client_cpus": os.cpu_count(),
        "client_memory_bytes": psutil.virtual_memory().total,
        "client_system": platform.platform(),
        "client_python": platform.python_version(),
        "client_package": __version__,
    }

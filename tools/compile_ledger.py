"""Put the ledger into a wheel as machine code, too: by mypyc, from the same files, where that was asked for.

    OTEL_LLM_ENERGY_COMPILE=1 python -m pip install .

It needs a C compiler. The Python files go into the wheel as well; without the compiled ones beside them they do the
same, at less than half the speed.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_VARIABLE = "OTEL_LLM_ENERGY_COMPILE"
_BUILDERS = ["mypy>=2.4,<2.5", "setuptools>=77"]


class CompileLedger(BuildHookInterface[Any]):
    """Hatchling calls this when it builds a wheel."""

    def dependencies(self) -> list[str]:
        return _BUILDERS if self._wanted else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if not self._wanted or version == "editable":
            return
        # It is removed with this object.
        self._built = tempfile.TemporaryDirectory(prefix="otel-llm-energy-")
        folder = Path(self._built.name)
        for path in _compiled(Path(self.root), folder):
            build_data["force_include"][str(path)] = str(path.relative_to(folder))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    @property
    def _wanted(self) -> bool:
        return os.environ.get(_VARIABLE, "") not in ("", "0")


def _compiled(root: Path, folder: Path) -> list[Path]:
    """Compile what is pure arithmetic into ``folder``; the files that came of it."""
    from mypyc.build import mypycify
    from setuptools import Distribution

    before = Path.cwd()
    os.chdir(root)
    try:
        # By mypy's own rules: what the other packages import is not there where only the wheel is built.
        rules = ["--config-file=", "--follow-imports=silent", "--ignore-missing-imports"]
        modules = ["otel_llm_energy/quantities.py"]
        modules += sorted(str(path) for path in Path("otel_llm_energy/ledger").glob("*.py") if path.stem != "__init__")
        extensions = mypycify(
            [*rules, *modules],
            opt_level="3",
            debug_level="0",
            target_dir=str(folder / "c"),
            group_name="otel_llm_energy_ledger",
        )
        build = Distribution({"ext_modules": extensions}).get_command_obj("build_ext")
        build.build_lib, build.build_temp = str(folder), str(folder / "o")
        build.ensure_finalized()
        build.run()
    finally:
        os.chdir(before)
    return sorted(folder.glob("*__mypyc*")) + sorted(folder.glob("otel_llm_energy/**/*.*"))

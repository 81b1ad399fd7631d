"""The study: prompts are asked under a power meter; what comes back is a dataset of calls and their joules.

`collect` asks, `dataset` reads what was collected, `report` shows what drives energy, `forecast` learns it. Nothing is
measured here: the figures are those on the spans of `otel_llm_energy.instrument`. Needs the ``study`` extra.
"""

from __future__ import annotations


class StudyError(Exception):
    """A study cannot go on: what was wrong, where, and what to do."""

"""``python -m otel_llm_energy.cli``, where the command is not on the path."""

import sys

from otel_llm_energy.cli import main

sys.exit(main())

"""Fetch the model weights into the cache folder and print their path: ``python -m tools.fetch_model``."""

from __future__ import annotations

import sys

from otel_llm_energy.cli.model import ModelError, ensure_model


def main() -> int:
    try:
        print(ensure_model())
    except ModelError as err:
        print(err, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Broken off; nothing was left behind.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Run the benchmarks and print their figures, as a table and as JSON.

``python -m benchmarks`` runs all of the quick ones, ``python -m benchmarks turns mcp`` only those.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from pathlib import Path
from typing import Final

QUICK: Final = ("turns", "cache", "sandbox", "mcp", "tasks")
RESULTS: Final = Path(__file__).parent / "results"


def main(names: list[str]) -> None:
    """Measure and print; the JSON lands in ``benchmarks/results``."""
    figures: dict[str, dict[str, float]] = {}
    for name in names or QUICK:
        module = importlib.import_module(f"benchmarks.{name}")
        figures[name] = asyncio.run(module.main())
        print(f"\n{name}")
        for label, value in figures[name].items():
            print(f"  {label:<62} {value:>12,.2f}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "latest.json").write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])

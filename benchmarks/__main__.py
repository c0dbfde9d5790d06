"""Run the benchmarks and print their figures, as a table and as JSON.

``python -m benchmarks`` runs all of the quick ones, ``python -m benchmarks turns mcp`` only those.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
from pathlib import Path
from typing import Final

QUICK: Final = ("turns", "cache", "sandbox", "mcp", "tasks", "full")
RESULTS: Final = Path(__file__).parent / "results"


def main() -> None:
    """Measure and print; the JSON lands in ``benchmarks/results``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", default=QUICK)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    figures: dict[str, dict[str, float]] = {}
    for name in options.names:
        module = importlib.import_module(f"benchmarks.{name}")
        figures[name] = asyncio.run(module.main())
        print(f"\n{name}")
        for label, value in figures[name].items():
            print(f"  {label:<74} {value:>12,.2f}")
    options.results.mkdir(exist_ok=True)
    (options.results / "latest.json").write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()

"""Cost against size, as a plot: the turn's number, conversations at once, the database.

Each curve is also given as one ratio, largest size to smallest: that is what has to stay flat. The plot is
``benchmarks/results/sizes.png``; a soak that ran before (``python -m benchmarks.soak``) is in it too.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.storage import SIZES
from benchmarks.storage_http import CALLS, measure
from benchmarks.turns import MIB, load, timed, turn
from tests.running import directive, new_host, running_model

RESULTS: Final = Path(__file__).parent / "results"
TURNS: Final = 200
AT_ONCE: Final = (1, 2, 4, 8, 16, 32, 64, 128)
ROUNDS: Final = 60


@dataclass(frozen=True, slots=True)
class Curve:
    """Milliseconds (or MiB) by size."""

    name: str
    sizes: Sequence[float]
    costs: Sequence[float]


async def main() -> dict[str, float]:
    """Return the ratios; draw the curves."""
    return await asyncio.to_thread(_measure)


def _measure() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as root, running_model() as model:
        settings = {"LOG_LEVEL": "warning", "MAX_CONCURRENT_RUNS": "256"}
        host = new_host(Path(root) / "host", model.url, settings).start()
        try:
            length = _by_turn(host)
            width = _by_conversations(host)
        finally:
            host.stop()
        databases = _by_database(Path(root), model.url)
    draw(length, width, databases)
    first = statistics.median(length.costs[1:6])
    figures = {"turn 200 to turn 2": statistics.median(length.costs[-5:]) / first}
    figures["128 conversations at once to 8, CPU a turn"] = width.costs[-1] / width.costs[3]
    return figures | {
        f"1 GiB to empty, {curve.name}": curve.costs[-1] / curve.costs[0] for curve in databases
    }


def _by_turn(host: Any) -> Curve:
    message = directive(text="A short answer to a short question.")
    conversation = turn(host, None, message)["conversation_id"]
    took = [timed(lambda: turn(host, conversation, message)) for _ in range(TURNS)]
    return Curve("a turn (ms)", range(1, TURNS + 1), took)


def _by_conversations(host: Any) -> Curve:
    costs = []
    for count in AT_ONCE:
        figures = load(host, count)
        costs.append(figures["CPU of the host a turn, ms"])
    return Curve("CPU a turn (ms)", AT_ONCE, costs)


def _by_database(root: Path, model_url: str) -> list[Curve]:
    medians = [measure(size, root / name.replace(" ", ""), model_url, ROUNDS) for name, size in SIZES.items()]
    sizes = [size / MIB for size in SIZES.values()]
    return [Curve(f"{name} (ms)", sizes, [figures[name] for figures in medians]) for name in CALLS]


def draw(length: Curve, width: Curve, databases: Sequence[Curve]) -> None:
    """Write the plot."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(11, 7.5), layout="constrained")
    panels = axes.flatten()
    panels[0].plot(length.sizes, length.costs, ".", markersize=3)
    panels[0].set(title="A conversation grows", xlabel="turn", ylabel=length.name, ylim=(0, None))
    panels[1].plot(width.sizes, width.costs, "o-")
    panels[1].set(
        title="More conversations at once", xlabel="conversations", ylabel=width.name, ylim=(0, None)
    )
    panels[1].set_xscale("log", base=2)
    for curve in databases:
        panels[2].plot(curve.sizes, curve.costs, "o-", label=curve.name)
    panels[2].set(title="The database grows", xlabel="MiB", ylabel="median (ms)", ylim=(0, None))
    panels[2].legend()
    soak = RESULTS / "soak.json"
    if soak.exists():
        samples = json.loads(soak.read_text())
        panels[3].plot([row[0] for row in samples], [row[1] for row in samples], "o-")
    panels[3].set(title="Soak: memory of the whole tree", xlabel="turns", ylabel="MiB PSS", ylim=(0, None))
    RESULTS.mkdir(exist_ok=True)
    figure.savefig(RESULTS / "sizes.png", dpi=110)
    plt.close(figure)

"""The benchmark of turns measures in turn and tells each ratio with its aim."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from benchmarks.turns import in_turn, ratio

ROOT = Path(__file__).parents[2]


def test_contenders_are_measured_in_turn_and_a_round_is_the_median_of_some() -> None:
    called: list[str] = []
    figures = iter([1.0, 9.0, 3.0, 2.0, 2.0, 2.0, 4.0, 4.0, 4.0, 1.0, 1.0, 1.0])

    def once(name: str) -> float:
        called.append(name)
        return next(figures)

    found = in_turn({"a": lambda: once("a"), "b": lambda: once("b")}, rounds=2, each=3)
    assert called == [*"aaabbb"] * 2
    assert found == {"a": [3.0, 4.0], "b": [2.0, 1.0]}
    assert ratio(found["a"], found["b"]) == (1.5 + 4.0) / 2


def test_each_figure_with_an_aim_is_told(tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--results", str(tmp_path), "turns"],
        env={**os.environ, "BENCH_SCALE": "0"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    aims = re.findall(r"^  (.*?) \(.*aim: [\d.]+\) +-?[\d.]+$", told, re.M)
    assert len(aims) == 13, told

"""Hosts are measured side by side through their adapters, and killed at the end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_our_host_is_measured_by_the_adapter_that_others_have_too(tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--results", str(tmp_path), "peers"],
        env={**os.environ, "BENCH_SCALE": "0", "PEERS": "PicoClaw"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    figures = dict(re.findall(r"^  PicoClaw: (.*?) +([\d.,]+)$", told, re.M))
    assert figures.pop("of these lost") == "0.00"
    assert len(figures) == 8, told
    figures.pop("processor time (ms)")  # the kernel counts it in hundredths of a second: of few turns none
    assert all(float(figure.replace(",", "")) > 0 for figure in figures.values())

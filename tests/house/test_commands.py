"""Every command that people are told, and every one of the Makefile, names what is there."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.MULTILINE))
TELL = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", ".ci/run")]
TOLD = "\n".join(path.read_text() for path in [*TELL, *sorted((ROOT / "docs").glob("*.md"))])
OURS = ("benchmarks", "host", "mcp_server", "shared", "tests")


def test_every_target_that_is_told_is_one() -> None:
    told = re.findall(r"(?:`|^|&& |\$ |start \w+ )make (?:--no-print-directory )?([a-z][a-z-]*)", TOLD, re.M)
    assert len(told) > 20
    assert [name for name in told if name not in TARGETS] == []


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_every_target_is_told_to_somebody_or_wanted_by_another(target: str) -> None:
    wanted = re.findall(
        rf"^(?!{target}:|\.PHONY)\S+:.*\b{target}\b|MAKE\).*\b{target}\b", MAKEFILE, re.MULTILINE
    )
    assert wanted or re.search(rf"make (?:--no-print-directory )?{target}(?![a-z-])", TOLD)


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_every_file_that_a_target_names_is_there(target: str) -> None:
    recipe = subprocess.run(
        ["make", "--dry-run", "--always-make", target], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    named = re.findall(r"(?<![\w/.*-])((?:tests|deploy|requirements|benchmarks|\.ci)/[\w/.-]+)", recipe)
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_module_that_is_told_or_run_by_the_makefile_is_there() -> None:
    modules = {name for name in re.findall(r"-m ([a-z_.]+)", TOLD + MAKEFILE) if name.split(".")[0] in OURS}
    assert len(modules) > 3
    assert [name for name in sorted(modules) if importlib.util.find_spec(name) is None] == []


def test_every_benchmark_that_is_told_is_one() -> None:
    told = set(re.findall(r"-m benchmarks ([a-z_]+)", TOLD))
    assert told
    assert [name for name in sorted(told) if not (ROOT / "benchmarks" / f"{name}.py").exists()] == []

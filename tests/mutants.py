"""Small faults put into the program one at a time, to see whether a test notices: make mutants.

It changes the files of the folder it runs in, which is why ``make mutants`` has it run in a copy. Which tests
cover a line is told by a run of ``make quick`` under coverage; what these don't notice is put before those of
``BESIDE``, whose processes coverage doesn't see.
"""

from __future__ import annotations

import argparse
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator
from coverage import CoverageData

ROOT = Path(__file__).parent.parent
CORE = [
    "shared/store",
    "shared/settings",
    "shared/tasks.py",
    "shared/schedules.py",
    "host/runs",
    "host/agent",
]
CORE += ["host/sandbox", "mcp_server"]
BESIDE = {
    "host/agent": ["tests/http/test_subagents.py", "tests/http/test_chat.py"],
    "host/runs": ["tests/http/test_runs.py", "tests/http/test_resume.py", "tests/http/test_sse.py"],
    "host/sandbox": ["tests/sandbox"],
    "mcp_server": [
        "tests/mcp/test_tool_server.py",
        "tests/mcp/test_tool_contract.py",
        "tests/mcp/test_identity.py",
    ],
    "shared/settings": ["tests/cli"],
    "shared/store/volume": ["tests/store"],
}
COMPARISONS = [
    "Eq_NotEq",
    "NotEq_Eq",
    "Lt_LtE",
    "LtE_Lt",
    "Gt_GtE",
    "GtE_Gt",
    "Lt_GtE",
    "Gt_LtE",
    "Is_IsNot",
    "IsNot_Is",
]
OTHERS = ["AddNot", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd"]
OTHERS += ["NumberReplacer", "ZeroIterationForLoop", "ReplaceBreakWithContinue", "ReplaceContinueWithBreak"]
PYTEST = [sys.executable, "-m", "pytest", "-q", "-m", "not slow"]
AT_ONCE = 60
"""So many tests that cover a line are tried before all of them are."""


class WithoutStatement(Operator):  # type: ignore[misc] # it has no types
    """A call or a raise that is left out, but for what is logged."""

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        if node.type == "simple_stmt" and re.match(
            r"\s*(raise\b|(await )?(?!log)\w[\w.]*\()", node.get_code()
        ):
            yield node.children[0].start_pos, node.children[0].end_pos

    def mutate(self, node: Any, index: int) -> Any:
        statement = get_ast("pass\n").children[0]
        statement.children[0].prefix = node.get_first_leaf().prefix
        return statement

    @classmethod
    def examples(cls) -> tuple[Any, ...]:
        return ()


class ReturnsNothing(Operator):  # type: ignore[misc] # it has no types
    """A value that isn't returned."""

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        if (
            node.type == "return_stmt"
            and len(node.children) > 1
            and node.children[1].get_code().strip() != "None"
        ):
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        node.children = [node.children[0]]
        return node

    @classmethod
    def examples(cls) -> tuple[Any, ...]:
        return ()


@dataclass(frozen=True)
class Mutant:
    path: Path
    line: int
    operator: Operator
    occurrence: int

    def code(self) -> str | None:
        changed: str | None = mutate_code(self.path.read_text(), self.operator, self.occurrence)
        return changed


def main() -> int:
    """Try mutants as long as there is time; return 1 if less than ``--least`` of them were killed."""
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", default=CORE, help="folders and files of the source")
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60, help="a bound on all of it")
    parser.add_argument("--tests", nargs="+", help="what is asked first (those of make quick)")
    parser.add_argument("--least", type=float, default=88, help="percent")
    options = parser.parse_args()
    ends = time.monotonic() + options.minutes * 60
    covering = measured(options.tests or quick())
    endings: Counter[str] = Counter()
    for mutant in sample(options.paths, options.count, random.Random(options.seed)):
        if time.monotonic() > ends:
            break
        ending = tried(mutant, covering)
        endings[ending] += 1
    share = 100 * (1 - endings["survived"] / max(1, endings.total()))
    told = ", ".join(f"{count} {ending}" for ending, count in endings.most_common())
    print(f"{endings.total()} mutants, {told}: {share:.0f} % noticed")
    return 1 if share < options.least else 0


def quick() -> list[str]:
    recipe = subprocess.run(["make", "--dry-run", "quick"], capture_output=True, text=True, check=True).stdout
    return recipe[recipe.index("--dist") :].split()


def measured(selected: list[str]) -> dict[tuple[str, int], list[str]]:
    """Run quick tests under coverage; return by file and line the tests that ran it and passed."""
    packages = [f"--cov={name}" for name in ("host", "shared", "mcp_server")]
    options = [*packages, "--cov-context=test", "--cov-report=", "--quick", "-n2"]
    subprocess.run([*PYTEST, *options, *selected], stdout=subprocess.DEVNULL, check=False)
    data = CoverageData()
    data.read()
    failed = (ROOT / ".pytest_cache/v/cache/lastfailed").read_text() if _failed() else ""
    found: dict[tuple[str, int], list[str]] = {}
    for file in data.measured_files():
        for line, contexts in data.contexts_by_lineno(file).items():
            tests = {context.rpartition("|")[0] for context in contexts if context}
            found[str(Path(file).relative_to(ROOT)), line] = sorted(t for t in tests if t not in failed)
    print(
        f"{len({t for tests in found.values() for t in tests})} quick tests cover {len(found)} lines",
        flush=True,
    )
    return found


def _failed() -> bool:
    return (ROOT / ".pytest_cache/v/cache/lastfailed").exists()


def sample(paths: list[str], count: int, chance: random.Random) -> list[Mutant]:
    """Choose the kind of fault first, then its place: there are many numbers and few ``or``."""
    operators = [WithoutStatement(), ReturnsNothing()]
    operators += [get_operator(f"core/ReplaceComparisonOperator_{name}")() for name in COMPARISONS]
    operators += [get_operator(f"core/{name}")() for name in OTHERS]
    files = [
        file
        for path in paths
        for file in sorted(Path(path).rglob("*.py") if Path(path).is_dir() else [Path(path)])
    ]
    trees = {file: list(ast_nodes(get_ast(file.read_text()))) for file in files}
    kinds = [[m for file, nodes in trees.items() for m in places(file, nodes, each)] for each in operators]
    for kind in kinds:
        chance.shuffle(kind)
    kinds = [kind for kind in kinds if kind]
    chosen: list[Mutant] = []
    while len(chosen) < count and kinds:
        kind = chance.choice(kinds)
        chosen.append(kind.pop())
        kinds = [each for each in kinds if each]
    return chosen


def places(file: Path, nodes: list[Any], operator: Operator) -> Iterator[Mutant]:
    found = (start[0] for node in nodes for start, _ in operator.mutation_positions(node))
    yield from (Mutant(file, line, operator, occurrence) for occurrence, line in enumerate(found))


def tried(mutant: Mutant, covering: dict[tuple[str, int], list[str]]) -> str:
    """Put a fault into its file, run what may notice, and take it out again."""
    before, after = mutant.path.read_text(), mutant.code()
    if after is None or after == before:
        return "nothing changed"
    tests = covering.get((str(mutant.path), mutant.line), [])
    first = random.Random(0).sample(tests, min(AT_ONCE, len(tests)))
    beside = [each for name, found in BESIDE.items() if str(mutant.path).startswith(name) for each in found]
    rest = [test for test in tests if test not in first]
    _write(mutant.path, after)
    try:
        for wanted, options in ((first, []), (rest, ["-n2"])):
            if wanted and (ending := ran(wanted, ["--quick", *options])):
                return ending
        if beside and (ending := ran(beside, ["-n2", "--dist=loadfile"])):
            return "killed" if ending == "killed" else "cut off beside"
    finally:
        _write(mutant.path, before)
    print(f"{mutant.path}:{mutant.line}: nothing noticed ({len(tests)} quick tests cover it)")
    print("\n".join(f"    {line}" for line in _difference(before, after)), flush=True)
    return "survived"


def ran(tests: list[str], options: list[str]) -> str:
    """Return "killed" if one failed or didn't start, "hung" if they didn't end, "" if nothing is noticed."""
    process = subprocess.Popen(
        [*PYTEST, "-x", "-p", "no:cacheprovider", *options, *tests],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return "" if process.wait(120) in (0, 5) else "killed"
    except subprocess.TimeoutExpired:
        return "hung"
    finally:
        subprocess.run(
            ["kill", f"-{signal.SIGKILL}", "--", f"-{process.pid}"], stderr=subprocess.DEVNULL, check=False
        )
        process.wait()


def _write(path: Path, text: str) -> None:
    """Write a file, and let nobody take the bytecode of before for that of now: both may be of one second."""
    path.write_text(text)
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        compiled.unlink()


def _difference(before: str, after: str) -> Iterator[str]:
    for old, new in zip(before.splitlines(), after.splitlines(), strict=False):
        if old != new:
            yield f"-{old.strip()}"
            yield f"+{new.strip()}"
            return


if __name__ == "__main__":
    sys.exit(main())

"""Try a sample of faults, and tell which ones no test notices: python -m tests.mutants.

Which tests run a line is measured once for a source (``--kept``). Of these the ones are run that take the
least time and run little else, until one fails.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.mutants import stage
from tests.mutants.coverage import Test, load, measure, read
from tests.mutants.faults import Mutant, difference, sample
from tests.mutants.stage import ROOT

AREAS = {
    "store": ["shared/store"],
    "runs": ["host/runs"],
    "agent": ["host/agent"],
    "tasks": ["shared/tasks.py", "shared/schedules.py"],
    "tool server": ["mcp_server"],
    "sandbox's client": [str(file.relative_to(ROOT)) for file in sorted(ROOT.glob("host/sandbox/*.py"))],
    "sandbox's worker": ["host/sandbox/worker"],
    "settings": ["shared/settings"],
}
TESTS = (
    "agent contract http models runs settings skills tasks sandbox store mcp cli channels chaos tools cluster"
)


def main() -> int:
    """Try mutants as long as there is time; return 1 if less than ``--least`` of them were killed."""
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__.splitlines()[0])
    parser.add_argument("areas", nargs="*", default=list(AREAS), help=f"{', '.join(AREAS)}, or a path")
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--from", type=int, default=0, dest="first", help="leave out so many of the sample")
    parser.add_argument("--minutes", type=float, default=60, help="a bound on trying them")
    parser.add_argument(
        "--seconds", type=float, default=40, help="of tests for one fault, as they were measured"
    )
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--tests", nargs="+", default=[f"tests/{name}" for name in TESTS.split()])
    parser.add_argument("--kept", type=Path, required=True, help="which tests run what: read, and added to")
    parser.add_argument("--least", type=float, default=88, help="percent")
    options = parser.parse_args()
    stage.warm()
    measure(options.tests, options.kept, options.at_once)
    areas = {name: AREAS.get(name, [name]) for name in options.areas}
    chosen = sample(areas, options.count, options.seed)[options.first :]
    trial = Trial(chosen, options.kept, options.seconds, time.monotonic() + options.minutes * 60)
    endings: dict[str, Counter[str]] = defaultdict(Counter)
    with multiprocessing.get_context("fork").Pool(options.at_once, _begin, [trial]) as pool:
        for number, ending, words in pool.imap_unordered(_try, range(len(chosen))):
            if ending:
                endings[_area(areas, chosen[number])][ending] += 1
                print(words, flush=True)
    return _told(endings, options.least)


class Trial:
    """Mutants, and what is known of the tests."""

    def __init__(self, mutants: list[Mutant], kept: Path, seconds: float, ends: float) -> None:
        self._mutants = mutants
        self._statements = read()
        self._tests = load(kept)
        self._own: dict[int, list[Test]] = defaultdict(list)
        for test in self._tests:
            for number in test.ran:
                self._own[number].append(test)
        self._seconds = seconds
        self._ends = ends

    def attempt(self, number: int) -> tuple[str, str]:
        """Return how it ended, which is nothing when there was no time, and what to say of it."""
        if time.monotonic() > self._ends:
            return "", ""
        mutant, began = self._mutants[number], time.monotonic()
        before, after = mutant.path.read_text(), mutant.code() or ""
        tests = self._choose(mutant)
        with tempfile.TemporaryDirectory(prefix="mutant-", dir="/tmp") as directory:
            Path(directory).chmod(0o755)
            changed = Path(directory) / "changed.py"
            changed.write_text(after)
            # Nobody is to take the bytecode of one for that of another.
            os.utime(changed, times=(number, number + os.getpid() * 1000))
            ending = self._ended({mutant.path: changed}, tests)
        words = (
            f"{ending:<8} {mutant.path}:{mutant.line} {time.monotonic() - began:.0f} s, {len(tests)} tests"
        )
        return ending, words if ending == "killed" else f"{words}\n{difference(before, after)}"

    def _ended(self, shown: dict[Path, Path], tests: list[Test]) -> str:
        for quick, options in ((True, ["--quick"]), (False, [])):
            wanted = [test for test in tests if test.quick is quick]
            # For what never ends. On a busy machine others are slow as well, which is no notice taken.
            bound = 100 + 5 * sum(test.seconds for test in wanted)
            if wanted and (ending := stage.run(shown, ["-x", *options, *(t.name for t in wanted)], bound)):
                return ending
        return "survived"

    def _choose(self, mutant: Mutant) -> list[Test]:
        """Return tests of the place, those of a file together, that take as long as is allowed."""
        numbers = self._statements.at(str(mutant.path), mutant.line)
        near = set(self._statements.at(str(mutant.path), 0))
        covering = {test.name: test for number in numbers for test in self._own[number]}.values()
        ranked = sorted(covering, key=lambda t: -len(t.ran & near) / (len(t.ran) + 500) / (t.seconds + 0.05))
        chosen: list[Test] = []
        left = self._seconds
        for test in _different_first(ranked):
            if test.seconds <= left:
                chosen.append(test)
                left -= test.seconds
        files = list(dict.fromkeys(_file(test) for test in chosen))
        return sorted(chosen, key=lambda test: files.index(_file(test)))


def _different_first(tests: Iterable[Test]) -> list[Test]:
    """Put those last that run nothing which none before them runs."""
    seen: set[int] = set()
    other: list[Test] = []
    alike: list[Test] = []
    for test in tests:
        (alike if test.ran <= seen else other).append(test)
        seen |= test.ran
    return other + alike


def _file(test: Test) -> str:
    return test.name.partition("::")[0]


_trial: Trial


def _begin(trial: Trial) -> None:
    global _trial
    _trial = trial


def _try(number: int) -> tuple[int, str, str]:
    return number, *_trial.attempt(number)


def _area(areas: Mapping[str, list[str]], mutant: Mutant) -> str:
    return next(name for name, paths in areas.items() if any(mutant.path.is_relative_to(p) for p in paths))


def _told(endings: dict[str, Counter[str]], least: float) -> int:
    total: Counter[str] = sum(endings.values(), Counter())
    for name, found in [*endings.items(), ("all", total)]:
        share = 100 * found["killed"] / max(1, found.total())
        counts = ", ".join(f"{count} {ending}" for ending, count in found.most_common())
        print(f"{name:<18} {found.total():>4} mutants: {share:.0f} % killed ({counts})")
    return 1 if 100 * total["killed"] / max(1, total.total()) < least else 0


if __name__ == "__main__":
    sys.exit(main())

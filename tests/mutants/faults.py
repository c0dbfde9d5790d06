"""The faults: where each can be put into the source, and a sample that is the same for the same seed."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator

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
NO_BEHAVIOUR = re.compile(r"-@dataclass\(")
"""Whether a value could be changed, which the types forbid already, makes no difference to what is done."""


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


def sample(areas: Mapping[str, Sequence[str]], count: int, seed: int) -> list[Mutant]:
    """Return as many of each area, in turn, so that the first ones are a sample as well."""
    share = -(-count // len(areas))
    samples = [_of_area(paths, share, random.Random(f"{seed} {name}")) for name, paths in areas.items()]
    return [each for each in chain.from_iterable(zip_longest(*samples)) if each][:count]


def _of_area(paths: Sequence[str], count: int, chance: random.Random) -> list[Mutant]:
    """Choose the kind of fault first, then its place: there are many numbers and few ``or``."""
    operators = [WithoutStatement(), ReturnsNothing()]
    operators += [get_operator(f"core/ReplaceComparisonOperator_{name}")() for name in COMPARISONS]
    operators += [get_operator(f"core/{name}")() for name in OTHERS]
    files = [file for path in map(Path, paths) for file in (sorted(path.rglob("*.py")) or [path])]
    trees = {file: list(ast_nodes(get_ast(file.read_text()))) for file in files}
    kinds = [[m for file, nodes in trees.items() for m in _places(file, nodes, each)] for each in operators]
    for kind in kinds:
        chance.shuffle(kind)
    chosen: list[Mutant] = []
    while len(chosen) < count and (kinds := [kind for kind in kinds if kind]):
        mutant = chance.choice(kinds).pop()
        before, after = mutant.path.read_text(), mutant.code()
        if after not in (None, before) and not NO_BEHAVIOUR.match(difference(before, after)):
            chosen.append(mutant)
    return chosen


def _places(file: Path, nodes: list[Any], operator: Operator) -> Iterator[Mutant]:
    found = (start[0] for node in nodes for start, _ in operator.mutation_positions(node))
    yield from (Mutant(file, line, operator, occurrence) for occurrence, line in enumerate(found))


def difference(before: str, after: str) -> str:
    """Return the first line that differs, as it was and as it is."""
    lines = zip(before.splitlines(), after.splitlines(), strict=False)
    return next((f"-{old.strip()}\n+{new.strip()}" for old, new in lines if old != new), "")

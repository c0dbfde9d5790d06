"""The tree of packages, drawn from what the files import, deferred and type-only imports too.

A package may import those on its own floor and below. Neither packages nor files may import in a circle.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from tests.house.test_layout import statements

ROOT = Path(__file__).parent.parent.parent
FLOORS = (
    {"cli"},
    {"app"},
    {"channels", "moving_in"},
    {"http"},
    {"runs"},
    {"agent", "tools", "mcp_clients"},
    {"skills", "volumes"},
    {"sandbox", "models", "telemetry", "schemas", "egress"},
    {"ports"},
    {"shared"},
    {"worker"},
)
"""Those of the host, from the top. The sandbox's worker stands alone: it imports nothing but itself."""
INSIDE = ({"supervisor", "main"}, {"exec"}, {"files"}, {"confine", "limits"})
"""Those of the sandbox's worker; whatever else is in it lies below them."""

UPWARD: set[str] = set()
"""Arrows back up that are still there. This list only gets shorter."""

SIDEWAYS: set[str] = set()
"""Arrows that close a circle of files in a package. This list only gets shorter too."""


def sources() -> dict[str, Path]:
    """Return the files of the program by the names of their modules."""
    paths = [path for top in ("host", "mcp_server", "shared") for path in (ROOT / top).rglob("*.py")]
    # The scripts of built-in skills are no part of the program: agents run them, in the sandbox.
    return {module_of(path): path for path in paths if "built_in" not in path.parts}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = sources()


def imported(module: str, path: Path) -> Iterator[str]:
    """Yield the modules of the program that a file imports anywhere."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in statements(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in SOURCES)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            named = [f"{base}.{alias.name}" for alias in node.names]
            yield from (name if name in SOURCES else base for name in named if base in SOURCES)


FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}


@cache
def arrows() -> Mapping[str, set[str]]:
    return {
        module: {name for name in imported(module, path) if name != module}
        for module, path in SOURCES.items()
    }


def package_of(module: str) -> str:
    top, _, rest = module.partition(".")
    if top != "host":
        return top
    if f"{module}.".startswith("host.sandbox.worker."):
        return "worker"
    return rest.partition(".")[0]


def circle(arrows: Mapping[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found[::-1]
    return []


def kept(module: str) -> set[str]:
    """Return what a module imports, without the arrows that are known to be wrong."""
    return {name for name in arrows()[module] if f"{module} -> {name}" not in UPWARD | SIDEWAYS}


def test_every_package_of_the_host_has_its_floor() -> None:
    assert {package_of(module) for module in SOURCES} - set(FLOOR) == {"", "mcp_server"}


def test_no_arrow_goes_back_up() -> None:
    upward = {
        f"{module} -> {name}"
        for module, names in arrows().items()
        for name in names
        if FLOOR.get(package_of(name), 99) < FLOOR.get(package_of(module), -1)
    }
    assert upward == UPWARD


def test_no_arrow_goes_back_up_inside_the_sandbox() -> None:
    def floor(module: str) -> int:
        name = module.removeprefix("host.sandbox.worker.").partition(".")[0]
        return next((number for number, names in enumerate(INSIDE) if name in names), len(INSIDE))

    workers = [module for module in SOURCES if package_of(module) == "worker"]
    assert [(m, n) for m in workers for n in arrows()[m] if floor(n) < floor(m)] == []


def test_packages_dont_import_in_a_circle() -> None:
    arrows: dict[str, set[str]] = {}
    for module in SOURCES:
        there = {package_of(name) for name in kept(module)} - {package_of(module)}
        arrows.setdefault(package_of(module), set()).update(there)
    assert circle(arrows) == []


def test_files_dont_import_in_a_circle() -> None:
    assert circle({module: kept(module) for module in SOURCES}) == []


def test_what_is_said_to_be_wrong_still_is() -> None:
    for arrow in UPWARD | SIDEWAYS:
        module, _, name = arrow.partition(" -> ")
        assert name in arrows().get(module, ()), f"{arrow}: gone, so take it out of the list"


def test_the_worker_imports_itself_alone() -> None:
    imports = {name for module in SOURCES if package_of(module) == "worker" for name in arrows()[module]}
    assert {package_of(name) for name in imports} == {"worker"}

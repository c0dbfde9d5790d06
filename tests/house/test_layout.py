"""The house rules that no linter knows: who imports whom, how long things are, what may not stand here."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
ALLOWED = {"host": {"host", "shared"}, "mcp_server": {"mcp_server", "shared"}, "shared": {"shared"}}
OWN = set(ALLOWED)


@cache
def imports(path: Path) -> tuple[str, ...]:
    return tuple(_imports(path))


def statements(path: Path) -> Iterator[ast.stmt]:
    """Yield the statements of a file, those in others too."""
    left: list[ast.AST] = [ast.parse(path.read_text())]
    for node in left:
        if isinstance(node, ast.stmt):
            yield node
        left += [child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.expr)]


def _imports(path: Path) -> Iterator[str]:
    for node in statements(path):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            # Only the sandbox's worker, which runs without the rest, may name its neighbours relatively.
            assert node.level == 0 or "worker" in path.parts, f"{path}: a relative import"
            yield node.module or "" if node.level == 0 else "host.sandbox.worker"


def sources(package: str) -> list[Path]:
    # The scripts of built-in skills are no part of the program: agents run them, in the sandbox.
    found = (ROOT / package).rglob("*.py")
    return sorted(path for path in found if "built_in" not in path.parts)


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_a_package_imports_only_what_the_layout_lets_it(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(package)
        for name in imports(path)
        if name.partition(".")[0] in OWN - ALLOWED[package]
    ]
    assert wrong == []


def test_no_statement_stands_outside_the_store() -> None:
    wrong = [
        str(path.relative_to(ROOT))
        for package in OWN
        for path in sources(package)
        if "sqlite3" in set(imports(path)) and "store" not in path.parts
    ]
    assert wrong == []


def test_the_host_starts_without_the_packages_that_are_slow_to_import() -> None:
    slow = {
        "anthropic",
        "asyncpg",
        "click",
        "html",
        "mcp",
        "sqlite_utils",
        "tarfile",
        "urllib.request",
        "rich",
        "typer",
        "prompt_toolkit",
        "prometheus_client",
        "tree_sitter",
        "telegram",
        "httpx",
    }
    script = f"import host.app, sys; print(sorted({slow} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"


def test_the_sandbox_worker_needs_the_standard_library_alone() -> None:
    outside = {
        name
        for path in (ROOT / "host" / "sandbox" / "worker").rglob("*.py")
        for name in imports(path)
        if name.partition(".")[0] not in sys.stdlib_module_names and name != "host.sandbox.worker"
    }
    assert outside == set()


def test_dependencies_are_each_explained() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *(entry for extra in extras for entry in extra)]
    names = {entry.partition(";")[0].partition(">")[0].partition("[")[0].strip() for entry in wanted}
    text = (ROOT / "docs" / "dependencies.md").read_text()
    assert {name for name in names if f"`{name}`" not in text} == set()


def test_the_lock_files_pin_every_package_with_hashes_and_name_no_registry() -> None:
    for lock in (ROOT / "requirements").glob("*.lock"):
        text = lock.read_text()
        assert "://" not in text
        blocks = [block for block in text.split("\n") if block and not block.startswith((" ", "#"))]
        assert all("==" in block for block in blocks)
        assert text.count("--hash=sha256:") >= len(blocks)

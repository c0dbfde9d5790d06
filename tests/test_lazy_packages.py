"""Lazy packages: what is asked for is there, the same as without them, and the rest isn't loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = {
    "__init__.py": """
        import os
        from . import types
        from .errors import Wrong, Wrong as Failed
        from lazily_tried.other import used, shout
        from .stars import *
        import lazily_tried_log
        __all__ = ["Wrong", "Failed", "starred", "computed"]
        computed = Wrong.__name__ * 2
    """,
    "errors.py": "class Wrong(Exception): ...",
    "other.py": "used = object()\ndef shout(word, end='!'): return word.upper() + end",
    "stars.py": "starred = 'a star'",
    "unwanted.py": "",
    "types/__init__.py": "from .first import First\nfrom .second import Second",
    "types/first.py": "class First: ...",
    "types/second.py": "from .first import First\nclass Second(First): ...",
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for name, text in PACKAGE.items():
        path = tmp_path / "lazily_tried" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(line.removeprefix(" " * 8) for line in text.splitlines()))
    (tmp_path / "lazily_tried_log.py").write_text("print('the whole package')")
    return tmp_path


def run(program: str, path: Path = Path()) -> list[str]:
    """Run the program on an interpreter that has imported nothing yet, and return what it printed."""
    program = f"import sys; sys.path.insert(0, {str(path)!r})\n{program}"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


LAZY = "from shared.processes import make_lazy; make_lazy('lazily_tried', 'types')\n"
LOADED = "print(*sorted(name for name in sys.modules if name.startswith('lazily_tried.')))\n"


def test_a_name_brings_only_the_module_that_it_comes_from(package: Path) -> None:
    assert run(f"{LAZY}from lazily_tried import Failed\n{LOADED}", package) == ["lazily_tried.errors"]
    assert run(f"{LAZY}import lazily_tried; lazily_tried.used\n{LOADED}", package) == ["lazily_tried.other"]
    assert run(f"{LAZY}from lazily_tried.types import First\n{LOADED}", package) == [
        "lazily_tried.types lazily_tried.types.first"
    ]
    # what its modules import of each other is as it always was
    assert run(f"{LAZY}import lazily_tried as it; print(it.types.Second.__base__)", package) == [
        "<class 'lazily_tried.types.first.First'>"
    ]


def test_a_late_function_brings_its_module_when_it_is_called(package: Path) -> None:
    program = (
        "from shared.processes import make_lazy\n"
        "make_lazy('lazily_tried', late={'lazily_tried.shout'})\n"
        f"from lazily_tried import shout\n{LOADED}print(shout('a'), shout('b', end='?'))\n{LOADED}"
    )
    assert run(program, package) == ["", "A! B?", "lazily_tried.other"]


@pytest.mark.parametrize("asked", ["it.computed", "it.starred", "it.os.sep", "it.__all__"])
def test_what_the_imports_do_not_explain_runs_the_whole_package_once(package: Path, asked: str) -> None:
    assert run(f"{LAZY}import lazily_tried as it; {asked}; {asked}; it.starred", package) == [
        "the whole package"
    ]


def test_what_is_whole_has_the_same_objects_as_before(package: Path) -> None:
    program = "import lazily_tried as it; was = it.Wrong; it.computed; print(it.Wrong is it.Failed is was)"
    assert run(LAZY + program, package) == ["the whole package", "True"]
    program = "from lazily_tried import *; print(Failed is Wrong, starred, computed)"
    assert run(LAZY + program, package) == ["the whole package", "True a star WrongWrong"]


def test_what_is_not_there_is_not_there(package: Path) -> None:
    program = (
        "import lazily_tried as it\nprint(hasattr(it, '__wrapped__'))\n"
        "try: from lazily_tried import missing\nexcept ImportError as problem: print(problem.name)"
    )
    assert run(LAZY + program, package) == ["False", "the whole package", "lazily_tried"]


def test_two_threads_that_want_the_whole_package_run_it_once(package: Path) -> None:
    program = (
        "import lazily_tried as it, concurrent.futures as futures\n"
        "with futures.ThreadPoolExecutor(8) as pool:\n"
        "    print(set(pool.map(lambda _: it.computed, range(64))))"
    )
    assert run(LAZY + program, package) == ["the whole package", "{'WrongWrong'}"]


def test_a_tenth_of_the_sdk_is_loaded_and_every_name_of_it_is_there() -> None:
    program = (
        "import host.models.anthropic_model\n"
        "loaded = len([name for name in sys.modules if name.startswith('anthropic')])\n"
        "import anthropic\n"
        "names = {name: getattr(anthropic, name) for name in anthropic.__all__}\n"
        "print(loaded, anthropic.APIError is anthropic._exceptions.APIError, len(names) > 50)\n"
        "print(anthropic.types.Message.__module__, 'types.message_stream_params' in str(sys.modules))\n"
        "from anthropic.lib._tracing import _api_call, finish_api_call_span as late\n"
        "_api_call.finish_api_call_span = lambda *a, **k: (a, k)\n"
        "print(late(1, b=2))\n"
    )
    first, second, late = run(program)
    loaded, *same = first.split()
    assert int(loaded) < 300
    assert same == ["True", "True"]
    assert second == "anthropic.types.message False"
    assert late == "((1,), {'b': 2})"


def test_a_tool_server_loads_neither_clients_nor_the_other_server() -> None:
    program = (
        "import mcp_server.session\n"
        "print([name for name in ('mcp.client', 'mcp.server.mcpserver', 'httpx2') if name in sys.modules])\n"
        "from mcp.client import Client; import mcp; print(mcp.Client is Client)"
    )
    assert run(program) == ["[]", "True"]

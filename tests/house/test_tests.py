"""What makes a test worth less than none: it waits for time, measures it, can't fail, or is left out."""

from __future__ import annotations

import ast
import gc
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TypeVar, cast

import pytest

ROOT = Path(__file__).parent.parent
# Beside them lie the environments of other programs that tests install.
FILES = sorted(
    path
    for path in ROOT.rglob("*.py")
    if not any(part.startswith((".", "node_modules")) for part in path.relative_to(ROOT).parts)
)
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)

ASLEEP = {
    "channels/test_crashes.py": "kills at random moments",
    "chaos/test_failures.py": "sees that nothing comes meanwhile",
    "chaos/test_kill.py": "kills at random moments",
    "chaos/test_many_connections.py": "comes and goes at random moments",
    "cluster/test_chaos.py": "kills and freezes at random moments",
    "fakes/model_server.py": "a model that takes its time",
    "http/test_sse.py": "sees that nothing comes meanwhile",
    "mcp/test_sign_in.py": "sees that nothing comes meanwhile",
    "models/test_remote_model.py": "sees that nothing comes meanwhile",
    "http/test_connections.py": "a client that says a little every few seconds",
    "http/test_resume.py::test_after_a_lost_lease": "a host that stood still longer than its lease",
    "http/test_states.py::stand_still": "a host that stood still longer than its leases",
    "mcp/test_speaking_servers.py": "a server that takes its time",
    "sandbox/stdio_server.py": "a server that takes its time",
    "store/test_durability.py": "kills at random moments",
    "store/test_lock.py::_beat": "a host that beats",
}
"""Who sleeps without a look at what it waits for, and why: nobody of them waits for something to happen."""
TIMED = {
    "console/test_untrusted.py": "a square of the length takes minutes, the bound is 20 s",
    "deploy/test_supervision.py": "the quickest of five stops, against a second of somebody else's",
    "http/test_other_servers.py": "what holds the event loop takes 13 s and more, the bound is 3 s",
    "image/test_running.py": "against the frameworks alone, on the same machine; a long test",
    "models/test_pacing.py": "counts the processor's time of its own thread",
}
"""Who asserts that something took less than so long, and why it can't be an event that is waited for."""
CLOCK = re.compile(r"\b(monotonic|perf_counter|monotonic_ms|time\.time)\(\)")
PROVES = re.compile(r"^pytest\.(raises|fail)$|(^|\.)(raises|raise_for_status|validate|check_(call|output))$")
SKIPS = re.compile(r"^pytest\.(mark\.)?skip(if)?$")
Node = TypeVar("Node", bound=ast.AST)
SLEEPS = ("time.sleep", "asyncio.sleep", "anyio.sleep", "sleep", "threading.Event().wait")


@cache
def nodes(path: Path) -> Mapping[type[ast.AST], list[ast.AST]]:
    """Return what a file is made of, by kind; each node knows the one above it."""
    found: dict[type[ast.AST], list[ast.AST]] = defaultdict(list)
    left: list[ast.AST] = [ast.parse(path.read_text())]
    for node in left:
        found[type(node)].append(node)
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.expr_context):  # one object for all
                child.parent = node  # type: ignore[attr-defined]
                left.append(child)
    return found


@pytest.fixture(scope="module", autouse=True)
def _no_garbage() -> Iterator[None]:
    """Trees have circles, and looking for garbage among them takes twice as long as making them."""
    gc.disable()
    yield
    nodes.cache_clear()
    gc.enable()


def everywhere(kind: type[Node]) -> list[tuple[Path, Node]]:
    return [(path, cast(Node, node)) for path in FILES for node in nodes(path)[kind]]


def functions() -> list[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef]]:
    return [*everywhere(ast.FunctionDef), *everywhere(ast.AsyncFunctionDef)]


def above(node: ast.AST) -> Iterator[ast.AST]:
    while (node := getattr(node, "parent", None)) is not None:  # type: ignore[assignment]
        yield node


def named(node: ast.expr) -> str:
    """Return the dotted name of what is called; unparse(), which knows all, takes seconds for all of them."""
    if isinstance(node, ast.Attribute):
        return f"{named(node.value)}.{node.attr}"
    if isinstance(node, ast.Call):
        return f"{named(node.func)}()"
    return node.id if isinstance(node, ast.Name) else ""


def called(node: ast.AST) -> set[str]:
    return {named(each.func) for each in ast.walk(node) if isinstance(each, ast.Call)}


def within(node: ast.AST) -> list[str]:
    """Return the names of the functions that it is in."""
    return [each.name for each in above(node) if isinstance(each, FUNCTION)]


def excepted(path: Path, node: ast.AST, exceptions: dict[str, str]) -> bool:
    name = path.relative_to(ROOT).as_posix()
    return bool({name, *(f"{name}::{each}" for each in within(node))} & exceptions.keys())


def at(path: Path, node: ast.AST) -> str:
    return f"tests/{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


@pytest.mark.parametrize("exceptions", [ASLEEP, TIMED], ids=["asleep", "timed"])
def test_every_exception_is_of_a_file_that_is_there(exceptions: dict[str, str]) -> None:
    assert [name for name in exceptions if not (ROOT / name.partition("::")[0]).exists()] == []


def polls(call: ast.Call) -> bool:
    """Tell whether a sleep is the pause of a loop that looks at what it waits for."""
    loops = (ast.While, ast.For, ast.AsyncFor, *FUNCTION)
    return isinstance(next((each for each in above(call) if isinstance(each, loops)), None), ast.While)


def test_no_test_waits_for_time_to_pass() -> None:
    asleep = [
        at(path, node)
        for path, node in everywhere(ast.Call)
        if named(node.func) in SLEEPS
        if not polls(node) and ast.unparse(node.args[0]) != "0" and not excepted(path, node, ASLEEP)
    ]
    assert asleep == [], "wait for what is to happen, in a loop that looks, with a bound"


@cache
def durations(path: Path) -> set[str]:
    """Return the names that hold how long something took."""
    names: set[str] = set()
    for node in cast("list[ast.BinOp]", nodes(path)[ast.BinOp]):
        if isinstance(node.op, ast.Sub) and CLOCK.search(ast.unparse(node.left)):
            holds = next(each for each in above(node) if isinstance(each, ast.stmt))
            names |= set(re.findall(r"^(\w+)(?:\.append\(| = )", ast.unparse(holds)))
    return names


def bounds_time(node: ast.Assert, names: set[str]) -> bool:
    """Tell whether it says that something took no longer than so; at least so long is a promise."""
    if not isinstance(node.test, ast.Compare):
        return False
    left = ast.unparse(node.test.left)
    polling = any(isinstance(each, ast.While) for each in above(node))
    upper = isinstance(node.test.ops[0], ast.Lt | ast.LtE)
    return upper and not polling and bool(CLOCK.search(left) or names & set(re.findall(r"\w+", left)))


def test_no_test_asserts_that_something_is_quick() -> None:
    timed = [
        at(path, node)
        for path, node in everywhere(ast.Assert)
        if bounds_time(node, durations(path)) and not excepted(path, node, TIMED)
    ]
    assert timed == [], "wait for the event within a generous bound, or measure in benchmarks"


def proves(node: ast.AST) -> bool:
    """Tell whether the function that it is in may fail by it."""
    if isinstance(node, ast.Call):
        return PROVES.search(named(node.func)) is not None
    if isinstance(node, ast.keyword):
        return node.arg == "check" and ast.unparse(node.value) == "True"
    return isinstance(node, ast.Assert | ast.Raise)


def test_a_bound_on_what_is_waited_for_is_generous() -> None:
    """Four tests at once on two busy processors wait ten times as long as one alone."""
    tight = [
        at(path, node)
        for path, node in everywhere(ast.Call)
        if named(node.func) == "anyio.fail_after" or named(node.func).endswith(".settimeout")
        if isinstance(bound := node.args[0], ast.Constant)
        if isinstance(bound.value, int | float) and bound.value < 60 and not excepted(path, node, TIMED)
    ]
    assert tight == []


def test_every_test_can_fail() -> None:
    called_by = [(named(node.func).split(".")[-1], set(within(node))) for _, node in everywhere(ast.Call)]
    kinds = (ast.Assert, ast.Raise, ast.keyword, ast.Call)
    can = {name for kind in kinds for _, node in everywhere(kind) if proves(node) for name in within(node)}
    while more := {name for called, by in called_by if called in can for name in by} - can:
        can |= more
    cannot = [
        at(path, node) for path, node in functions() if node.name.startswith("test_") and node.name not in can
    ]
    assert cannot == [], "assert what is to be seen"


def always(test: ast.expr) -> bool:
    """Tell whether it holds whatever happens: a constant, a list, a generator, one and the same twice."""
    if isinstance(test, ast.Constant | ast.Tuple | ast.List | ast.Dict | ast.GeneratorExp | ast.JoinedStr):
        return True
    names = any(isinstance(each, ast.Name) for each in ast.walk(test))
    same = isinstance(test, ast.Compare) and ast.unparse(test.left) == ast.unparse(test.comparators[0])
    return not names or (same and not called(test))


def of_nothing(node: ast.Assert) -> bool:
    """Tell whether it asks all of a list that may be empty, at which no other assertion looks."""
    test = node.test
    if not (isinstance(test, ast.Call) and ast.unparse(test.func) == "all" and test.args):
        return False
    over = test.args[0].generators[0].iter if isinstance(test.args[0], ast.GeneratorExp) else test.args[0]
    if isinstance(over, ast.Tuple | ast.List) or ast.unparse(over).startswith(("range(", "zip(")):
        return False
    names = {each.id for each in ast.walk(over) if isinstance(each, ast.Name)}
    function = next(each for each in above(node) if isinstance(each, FUNCTION))
    others = [each.test for each in ast.walk(function) if isinstance(each, ast.Assert) and each is not node]
    return not any(names & set(re.findall(r"\w+", ast.unparse(each))) for each in others)


def test_no_assertion_holds_whatever_happens() -> None:
    empty = [at(path, node) for path, node in everywhere(ast.Assert) if always(node.test) or of_nothing(node)]
    assert empty == [], "compare what the test made; before all(...) say that there are some"


def test_a_test_that_is_left_out_says_what_it_needs() -> None:
    """Where everything is installed nothing is left out but for what a level of the sandbox hasn't."""
    silent = [
        at(path, node)
        for path, node in everywhere(ast.Call)
        if SKIPS.search(named(node.func))
        if not re.search(r"needs |at this level|WHY_NOT|known_break", ast.unparse(node))
    ]
    assert silent == []

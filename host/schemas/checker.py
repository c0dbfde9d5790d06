"""The process that judges: a line of JSON in, a line out. Started by its path; knows nothing of the host.

A question that takes longer than it may ends the process: that is the answer to it.
"""

import contextlib
import re
import resource
import signal
import sys
from collections.abc import Iterator
from typing import Any, Final, NoReturn

import jsonschema_rs
import orjson

SECONDS: Final = 0.25
"""Processor time of one question."""
PATTERN_SECONDS: Final = 0.05
"""The same where the host does what was asked about itself, if it comes to an end."""
MEMORY: Final = 64 << 20
"""Bytes beyond what the process has at its start."""
DEEPEST: Final = 64
MOST_NODES: Final = 1000
RETRIEVING: Final = re.compile(
    r"Resource '.*' is not present in a registry and retrieving it failed: ValueError: "
)
"""The library's words before those of ``_refuse``."""
REFERENCES: Final = ("$ref", "$dynamicRef")
PATTERNS: Final = jsonschema_rs.RegexOptions()
"""The engine that doesn't backtrack: it knows no look-around and no back references."""


def main() -> None:
    """Answer until the input ends."""
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()  # noqa: PTH123, SIM115
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin.buffer:
        question = orjson.loads(line)
        with _bounded(PATTERN_SECONDS if "patterns" in question else SECONDS):
            answer = _answer(question)
        sys.stdout.buffer.write(orjson.dumps(answer) + b"\n")
        sys.stdout.buffer.flush()


@contextlib.contextmanager
def _bounded(seconds: float) -> Iterator[None]:
    signal.setitimer(signal.ITIMER_PROF, seconds)  # SIGPROF ends a process that doesn't handle it: signal(7)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)


def _answer(question: dict[str, Any]) -> dict[str, Any]:
    if "patterns" in question:
        for pattern in question["patterns"]:
            for text in question["texts"]:
                re.search(pattern, text)
        return {}
    schema = question["schema"]
    if question.get("shape"):
        return _shape(schema)
    if (too_much := _size_fault(schema)) is not None:
        return {"schema_fault": too_much}
    try:
        validator = jsonschema_rs.Draft202012Validator(schema, pattern_options=PATTERNS, retriever=_refuse)
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        return {"schema_fault": RETRIEVING.sub("", _sentence(error, _of_reference(schema, str(error))))}
    if "value" not in question:
        return {}
    for fault in validator.iter_errors(question["value"]):
        return {"value_fault": _sentence(fault, question.get("name", ""))}
    return {}


def _shape(schema: Any) -> dict[str, Any]:
    try:
        jsonschema_rs.meta.validate(schema)
    except (jsonschema_rs.ValidationError, ValueError) as error:
        return {"schema_fault": _sentence(error)}
    return {}


def _refuse(address: str) -> NoReturn:
    raise ValueError(f"leads out of the document: {address[:200]}")


def _size_fault(schema: Any) -> str | None:
    """Return what is too much about a schema."""
    count, level = 0, [schema]
    for _ in range(DEEPEST):
        count += len(level)
        level = [child for node in level for child in _children(node)]
        if count + len(level) > MOST_NODES:
            return f"it has more than {MOST_NODES:,} parts"
        if not level:
            return None
    return f"it is nested deeper than {DEEPEST} levels"


def _children(node: Any) -> list[Any]:
    inside = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return [child for child in inside if isinstance(child, dict | list)]


def _of_reference(schema: Any, said: str) -> str:
    """Return the path of the first reference that an error names, "" if it names none."""
    found = [("", schema)]
    for path, node in found:
        inside = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, item in inside:
            if key in REFERENCES and isinstance(item, str) and item.lstrip("#") and item.lstrip("#") in said:
                return f"{path}{key}"
            found.append((f"{path}{key}/", item))
    return ""


def _sentence(error: Exception, name: str = "") -> str:
    if not isinstance(error, jsonschema_rs.ValidationError):
        return f"{name}: {error}".removeprefix(": ").partition("\n")[0][:500]
    place = "/".join(filter(None, (name, *map(str, error.instance_path))))
    return f"{place}: {error.message[:500]}" if place else error.message[:500]


if __name__ == "__main__":
    main()

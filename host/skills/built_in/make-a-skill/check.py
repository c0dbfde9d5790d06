"""Check a skill's folder against the Agent Skills format. Needs Python's standard library alone."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

NAME: Final = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
HEAD: Final = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$\n?", re.DOTALL | re.MULTILINE)
LINK: Final = re.compile(r"\]\(([^)#:\s]+)\)|`((?:scripts|references|assets)/[\w./-]+)`")
PLAIN: Final = re.compile(r"([A-Za-z_-]+):(?:[ \t]+(.*))?")


def faults(folder: Path) -> Iterator[str]:
    """Yield a sentence for each thing to be mended."""
    file = folder / "SKILL.md"
    if not file.is_file():
        yield f"{file} does not exist"
        return
    data = file.read_bytes()
    if len(data) > 64 * 1024:
        yield f"SKILL.md has {len(data)} bytes; what is beyond 65536 is never loaded: move it to other files"
    try:
        text = data.decode()
    except UnicodeDecodeError:
        yield "SKILL.md is not UTF-8"
        return
    found = HEAD.match(text)
    if found is None:
        yield "SKILL.md must begin with a line ---, keys and values, and another line ---"
        return
    if len(found[1].encode()) > 8192:
        yield "the front matter is longer than 8192 bytes"
    keys = dict(read(found[1]))
    yield from name_faults(keys.get("name", ""), folder.resolve().name)
    yield from description_faults(keys.get("description", ""))
    if re.search(r"^description:[ \t]+[^\s\"'>|].*?(:[ \t]|[ \t]#)", found[1], re.MULTILINE):
        yield 'description: has ": " or " #" in it; put the whole text in double quotes'
    yield from body_faults(folder, text[found.end() :])


def read(head: str) -> Iterator[tuple[str, str]]:
    """Yield the front matter's top-level keys and texts; indented lines belong to the key above."""
    key, parts = "", list[str]()
    for line in head.splitlines():
        found = PLAIN.fullmatch(line)
        if found is None:
            parts.append(line.strip())
            continue
        if key:
            yield key, value(parts)
        key, parts = found[1], [(found[2] or "").strip()]
    if key:
        yield key, value(parts)


def value(parts: list[str]) -> str:
    """Return a text without quotes and without the sign of a block."""
    first = "" if re.fullmatch(r"[>|][+-]?", parts[0]) else parts[0]
    text = " ".join(part for part in (first, *parts[1:]) if part)
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def name_faults(name: str, folder: str) -> Iterator[str]:
    """Yield what is wrong with the name."""
    if not NAME.fullmatch(name) or len(name) > 64:
        yield f"name: {name!r} must be 1 to 64 of a-z, 0-9 and single hyphens between them"
    elif name != folder:
        yield f"name: {name!r} must be the name of the folder, {folder!r}"


def description_faults(description: str) -> Iterator[str]:
    """Yield what is wrong with the description."""
    if not description.strip():
        yield "description: is missing"
    if len(description) > 1024:
        yield f"description: has {len(description)} characters, at most 1024 are allowed"
    if 0 < len(description) < 40:
        yield "description: is very short; say what the skill does and when to use it"


def body_faults(folder: Path, body: str) -> Iterator[str]:
    """Yield what is wrong with the instructions."""
    if not body.strip():
        yield "there are no instructions below the front matter"
    if body.count("\n") > 500:
        yield f"SKILL.md has {body.count(chr(10))} lines; move what is seldom needed to other files"
    for found in LINK.finditer(body):
        name = found[1] or found[2]
        if not (folder / name).exists():
            yield f"it names {name}, which does not exist in the folder"


def main() -> None:
    """Check the folder given; exit code 1 if something is to be mended."""
    if len(sys.argv) != 2:
        sys.exit("usage: python3 check.py skills/<name>")
    found = list(faults(Path(sys.argv[1])))
    for sentence in found:
        print(f"- {sentence}")
    if found:
        sys.exit(1)
    print("ok: the skill can be loaded")


if __name__ == "__main__":
    main()

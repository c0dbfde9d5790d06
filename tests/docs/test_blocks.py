"""Every command that the docs name exists with its options; every JSON, YAML and TOML block is taken."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import httpx2
import pytest
import typer
import yaml

from host.cli import make_app
from shared.settings import load
from shared.settings.leaves import leaves
from tests.docs.pages import PAGES, ROOT
from tests.json_schema import validator
from tests.running import running_host

FENCED: Final = re.compile(r"^( *)```(\w+)\n(.*?)^\1```", re.M | re.S)
SHELL: Final = ("console", "sh", "bash")
MAKE: Final = re.compile(r"^([\w-]+):", re.M)
GENERATED: Final = ("cli.md", "api.md")
CONFIG: Final = {leaf.key.split(".")[0] for leaf in leaves()} | {"version"}


def blocks(*languages: str) -> list[Any]:
    found: list[Any] = []
    for page in PAGES:
        for number, (indent, language, text) in enumerate(FENCED.findall(page.read_text())):
            if language in languages and page.name not in GENERATED:
                text = re.sub(f"^{indent}", "", text, flags=re.M)
                found.append(pytest.param(text, id=f"{page.name}-{number}"))
    return found


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each command of a shell block, without what a shell would take away."""
    for line in text.replace("\\\n", " ").splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            continue  # the inside of a here-document or of a text over lines
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            del words[0]
        if words:
            yield words


def inline() -> list[Any]:
    """Return every `picoclaw ...` and `make ...` of running text and tables."""
    found = {}
    for page in PAGES:
        text = FENCED.sub("", page.read_text())
        for said in re.findall(r"`((?:picoclaw|make|python -m) [^`]+)`", text):
            found[said] = pytest.param(said, id=said)
    return list(found.values())


@pytest.mark.parametrize("text", blocks(*SHELL))
def test_the_commands_of_a_block_exist(text: str) -> None:
    for words in commands(text):
        check(words)


@pytest.mark.parametrize("text", inline())
def test_a_command_in_the_text_exists(text: str) -> None:
    for alternative in re.split(r"\||, ", text):
        words = shlex.split(alternative, comments=True)
        if words[:1] in (["picoclaw"], ["make"], ["python"]):
            check(words)


def check(words: list[str]) -> None:
    program = words[0].rpartition("/")[2]
    if program == "picoclaw" and len(words) > 1:
        check_picoclaw(words[1:])
    elif program == "make":
        targets = MAKE.findall((ROOT / "Makefile").read_text())
        assert [word for word in words[1:] if word.isidentifier() and word not in targets] == []
    elif words[:2] == ["python", "-m"] and words[2].startswith(("benchmarks", "shared", "tests", "host")):
        assert find_spec(words[2]) is not None, words


def check_picoclaw(words: list[str]) -> None:
    command: Any = typer.main.get_command(make_app())
    while words and getattr(command, "commands", None):
        name = words.pop(0)
        if name.startswith("-"):
            assert name in ("--help", "--version")
            return
        assert name in command.commands, f"there is no command {name}"
        command = command.commands[name]
    options = {option for each in command.params for option in each.opts} | {"--help"}
    words = words[: words.index("--")] if "--" in words else words  # what follows is another program's
    given = [word.partition("=")[0] for word in words if word.startswith("--")]
    assert [word for word in given if word not in options] == []


@pytest.mark.parametrize("text", blocks("yaml"))
def test_a_block_of_yaml_is_yaml(text: str) -> None:
    assert yaml.safe_load(text)


@pytest.mark.parametrize("text", blocks("toml"))
def test_a_block_of_toml_is_toml(text: str) -> None:
    assert tomllib.loads(text)


@pytest.mark.parametrize("text", blocks("json"))
def test_a_block_of_json_is_json_and_settings_load(text: str, tmp_path: Path) -> None:
    value = json.loads(text)
    if value.keys() <= CONFIG:
        (tmp_path / "config.json").write_text(text)
        warnings = load({"HOME": str(tmp_path), "PICOCLAW_HOME": str(tmp_path)}).warnings
        assert [
            said for said in warnings if "restrict_to_workspace" not in said and "token" not in said
        ] == []


def requests() -> list[Any]:
    """Return the bodies that curl lines and blocks under a request line send: path and body."""
    found: list[Any] = []
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        for path, body in re.findall(r"curl [^\n]*localhost:9000(/\S+)[^\n]*?-d '([^']+)'", text):
            found.append(pytest.param("post", path, body, id=f"{page.name}-{path}-{len(found)}"))
        for method, path, body in re.findall(r"^(POST|PUT|PATCH) (/\S+)\n+(\{.*\})$", text, re.M):
            if page.name not in GENERATED:
                found.append(pytest.param(method.lower(), path, body, id=f"{page.name}-{path}-{len(found)}"))
    return found


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with running_host(tmp_path_factory.mktemp("host"), None) as host, host.client() as client:
        answer: httpx2.Response = client.get("/openapi.json")
        found: dict[str, Any] = answer.json()
        return found


@pytest.mark.parametrize(("method", "path", "body"), requests())
def test_a_request_of_the_docs_is_as_the_contract_has_it(
    document: dict[str, Any], method: str, path: str, body: str
) -> None:
    if path.startswith("/channels/"):
        json.loads(body)
        return
    content = document["paths"][path][method]["requestBody"]["content"]["application/json"]["schema"]
    faults = validator({**content, "components": document["components"]}).iter_errors(json.loads(body))
    assert [fault.message for fault in faults] == []

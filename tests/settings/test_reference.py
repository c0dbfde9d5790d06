from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from shared.settings import load
from shared.settings.leaves import leaves
from tests.docs.settings_page import in_document, reference

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs/configuration.md").read_text()
EXAMPLES = re.findall(r"^```(\w+)\n(.*?)^```$", DOCUMENT, re.M | re.S)

WITH_MODELS = """{
  "model_list": [{"model_name": "default", "model": "claude"}, {"model_name": "small", "model": "claude"}],
  "tools": {"mcp": {"servers": {"github": {"url": "https://mcp.example/github"}}}}
}"""


def test_the_reference_in_the_documentation_is_the_models() -> None:
    assert in_document(DOCUMENT, reference()) == DOCUMENT, (
        "run python -m tests.docs.settings_page docs/configuration.md"
    )


def test_every_setting_is_described() -> None:
    assert [leaf.key for leaf in leaves() if not leaf.field.description] == []


def test_environment_names_are_unique() -> None:
    names = [name for leaf in leaves() for name in leaf.env]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize(
    ("language", "text"),
    [example for example in EXAMPLES if example[0] != "text"],
    ids=lambda text: text[:30],
)
def test_every_example_is_loaded_without_a_warning(tmp_path: Path, language: str, text: str) -> None:
    environ = {"HOME": str(tmp_path), "PICOCLAW_HOME": str(tmp_path)}
    if language == "json":
        (tmp_path / "config.json").write_text(text)
    elif language == "yaml":
        (tmp_path / "config.json").write_text(WITH_MODELS)
        (tmp_path / ".security.yml").write_text(text)
        (tmp_path / ".security.yml").chmod(0o600)
    else:
        environ |= dict(line.split("=", 1) for line in text.splitlines())
    warnings = load(environ).warnings
    assert [each for each in warnings if "restrict_to_workspace is off" not in each] == []


def test_the_documentation_has_examples_of_each_kind() -> None:
    assert {language for language, _ in EXAMPLES} == {"json", "yaml", "sh", "text"}


def test_the_version_is_the_distribution_s(tmp_path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert load({"PICOCLAW_HOME": str(tmp_path)}).version == project["version"]

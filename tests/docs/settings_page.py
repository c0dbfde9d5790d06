"""The settings as a Markdown reference, drawn from the models.

``python -m tests.docs.settings_page docs/configuration.md`` brings the document up to date.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Union, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from shared import jsons
from shared.settings.access import PluginChannel
from shared.settings.leaves import Leaf, leaves, member
from shared.settings.models import ModelEntry
from shared.settings.sections import Permission, Price, Section
from shared.settings.tools import McpServer

BEGIN: Final = "<!-- begin: made by `python -m tests.docs.settings_page docs/configuration.md` -->"
END: Final = "<!-- end -->"

WORDS: Final = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    Path: "path",
    SecretStr: "secret",
}


def reference() -> str:
    """Return the tables of all settings."""
    config = [leaf for leaf in leaves() if leaf.in_config]
    operator = [leaf for leaf in leaves() if not leaf.in_config or len(leaf.env) > 1]
    return "\n".join(
        [
            BEGIN,
            "",
            "## By the operator's environment names",
            "",
            "| Name | Is | Default | Meaning |",
            "|---|---|---|---|",
            *(_operator_row(leaf) for leaf in operator),
            "",
            "## Keys of config.json",
            "",
            "| Key | Environment | Is | Default | Meaning |",
            "|---|---|---|---|---|",
            *(_config_row(leaf) for leaf in config),
            *_section_table("An entry of `model_list`", ModelEntry),
            *_section_table("An entry of `permissions`", Permission),
            *_section_table("An entry of `tools.mcp.servers`", McpServer),
            *_section_table("An entry of `channels.plugins`", PluginChannel),
            *_section_table("An entry of `budgets.prices`", Price),
            "",
            END,
        ]
    )


def in_document(document: str, made: str) -> str:
    """Return the document with what is between its marks replaced; raises ``ValueError`` without marks."""
    before, after = document.index(BEGIN), document.index(END)
    return document[:before] + made + document[after + len(END) :]


def _operator_row(leaf: Leaf) -> str:
    return f"| `{leaf.env[0]}` | {_kind(leaf.kind)} | {_default(leaf)} | {_meaning(leaf.field)} |"


def _config_row(leaf: Leaf) -> str:
    env = " or ".join(f"`{name}`" for name in leaf.env)
    return f"| `{leaf.key}` | {env} | {_kind(leaf.kind)} | {_default(leaf)} | {_meaning(leaf.field)} |"


def _section_table(title: str, section: type[Section]) -> Iterator[str]:
    yield from ("", f"### {title}", "", "| Key | Is | Default | Meaning |", "|---|---|---|---|")
    for name, field in section.model_fields.items():
        yield f"| `{name}` | {_kind(field.annotation)} | {_shown(field)} | {_meaning(field)} |"


def _meaning(field: FieldInfo) -> str:
    return (field.description or "").replace("|", "\\|")


def _default(leaf: Leaf) -> str:
    if leaf.path == ("home",):
        return "`~/.picoclaw`, for root `/var/lib/picoclaw`"
    if leaf.path == ("timezone",):
        return "the machine's"
    return f"`$PICOCLAW_HOME/{leaf.under_home}`" if leaf.under_home else _shown(leaf.field)


def _shown(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    if default is PydanticUndefined:
        return "needed"
    if default is None:
        return "unset"
    return f"`{default if isinstance(default, str) else jsons.dumps(default)}`"


def _kind(kind: Any) -> str:
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(
            dict.fromkeys(_kind(item) for item in get_args(kind) if item is not types.NoneType)
        )
    if get_origin(kind) is Annotated:
        return _kind(get_args(kind)[0])
    if kind in WORDS:
        return WORDS[kind]
    if member(kind) is not None:
        return "list of objects" if get_origin(kind) is tuple else "objects by name"
    if get_origin(kind) is tuple:
        return f"list of {_kind(get_args(kind)[0])}"
    if get_origin(kind) is dict:
        return f"{_kind(get_args(kind)[1])} by name"
    return " or ".join(f"`{choice}`" for choice in get_args(kind))


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(in_document(path.read_text(encoding="utf-8"), reference()), encoding="utf-8")

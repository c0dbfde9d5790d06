"""Which configured models have a last day, by the table that the SDK warns from."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from shared.settings import Settings
from shared.settings.models import ANTHROPIC
from shared.settings.tree import configured

TABLE: Final = "_data/deprecated_models.py"


def deprecated(settings: Settings) -> Iterator[str]:
    """Yield a sentence for each configured model of Anthropic's that the SDK lists as deprecated."""
    ids = [choice.model for choice in configured(settings) if (choice.base_url or ANTHROPIC) == ANTHROPIC]
    last_days = {} if settings.offline else _last_days()
    for model in dict.fromkeys(ids):
        if model in last_days:
            yield f"model {model} is deprecated and its last day is {last_days[model]}: choose another"


def _last_days() -> dict[str, str]:
    """Read the table, {} when it is elsewhere. To import the SDK takes 0.3 s that the start doesn't have."""
    spec = find_spec("anthropic")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    try:
        tree = ast.parse(Path(*folders[:1], TABLE).read_text())
    except (OSError, ValueError):
        return {}
    tables = [node.value for node in tree.body if isinstance(node, ast.AnnAssign) and node.value]
    return dict(ast.literal_eval(tables[0])) if tables else {}

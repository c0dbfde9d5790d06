"""``config.json`` as a layer of settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from shared import jsons
from shared.settings.faults import did_you_mean
from shared.settings.files import line_of, read_text
from shared.settings.leaves import config_sections
from shared.settings.section import SettingsError

VERSIONS: Final = (2, 3)


class ConfigJson:
    """The parsed file: its tree, its text for line numbers, and what deserves a warning."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.warnings: list[str] = []
        self.text = read_text(path) or ""
        self.tree = self._parsed() if self.text else {}
        self._check_version()
        self._check_sections()
        self._drop_plain_keys()

    def at(self, keys: tuple[str | int, ...]) -> str:
        """Return ``file, line N: key`` for a sentence."""
        line = line_of(self.text, keys)
        place = f"{self.path}, line {line}" if line else f"{self.path}"
        return f"{place}: {'.'.join(str(key) for key in keys)}"

    def _parsed(self) -> dict[str, Any]:
        try:
            tree = jsons.loads(self.text)
        except jsons.JSONDecodeError as error:
            raise SettingsError(f"{self.path}, line {error.lineno}: is not JSON ({_reason(error)})") from None
        if not isinstance(tree, dict):
            raise SettingsError(f"{self.path} must hold a JSON object")
        return tree

    def _check_version(self) -> None:
        version = self.tree.pop("version", 3)
        if version not in VERSIONS or isinstance(version, bool):
            raise SettingsError(f"{self.at(('version',))} must be 3 (or 2)")

    def _check_sections(self) -> None:
        for name in self.tree:
            if name not in config_sections():
                hint = did_you_mean(name, sorted(config_sections()))
                raise SettingsError(f"{self.at((name,))} is not a known key{hint}")

    def _drop_plain_keys(self) -> None:
        entries = self.tree.get("model_list")
        for index, entry in enumerate(entries if isinstance(entries, list) else ()):
            if isinstance(entry, dict) and entry.pop("api_key", None) is not None:
                self.warnings.append(
                    f"{self.at(('model_list', index, 'api_key'))} is ignored: "
                    "keys belong in .security.yml (or a secret value in api_keys)"
                )


def _reason(error: jsons.JSONDecodeError) -> str:
    """The parser's reason without its position, which the sentence gives already."""
    return re.sub(r":? ?line \d+.*|at line.*", "", error.msg).strip() or "syntax error"

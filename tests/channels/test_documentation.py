"""What docs/channels.md shows can be used as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from host.channels.messages import OWNERS_GREETING
from host.channels.service import GROUP
from shared.settings import load

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "channels.md").read_text()
JSON = re.findall(r"^ *```json\n(.*?)```", PAGE, re.M | re.S)
YAML = re.findall(r"^ *```yaml\n(.*?)```", PAGE, re.M | re.S)


@pytest.mark.parametrize("text", JSON, ids=lambda text: text[:50])
def test_every_example_of_settings_is_loaded_without_a_warning(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    (tmp_path / ".security.yml").write_text(YAML[0])
    (tmp_path / ".security.yml").chmod(0o600)
    settings = load({"HOME": str(tmp_path), "PICOCLAW_HOME": str(tmp_path)})
    assert settings.warnings == ()
    assert settings.channels.telegram.token is not None
    assert any(channel.enabled for channel in settings.channels.by_name().values())


def test_the_page_names_every_command_and_the_entry_point() -> None:
    assert GROUP in PAGE
    for command in ("/start", "/help", "/new", "/stop", "/tasks", "/main"):
        assert f"`{command}`" in PAGE
    assert "/main" in OWNERS_GREETING

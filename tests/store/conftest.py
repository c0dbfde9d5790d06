from __future__ import annotations

from pathlib import Path

import pytest

from tests.store.places import Places


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(volume=tmp_path / "volume", local=tmp_path / "local")

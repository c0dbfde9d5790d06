from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.store.places import Places


@pytest.fixture
def places(tmp_path: Path) -> Iterator[Places]:
    made = Places(volume=tmp_path / "volume", local=tmp_path / "local")
    yield made
    made.end_writers()

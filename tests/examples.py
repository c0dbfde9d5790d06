"""How many examples property tests try: fewer in `make quick`, many more in `make fuzz`."""

from __future__ import annotations

import os
from typing import Final

FACTOR: Final = float(os.environ.get("TEST_EXAMPLES", "1"))


def examples(usual: int) -> int:
    """Return how many to try now where ``usual`` are tried in every run of the whole suite."""
    return max(1, round(usual * FACTOR))

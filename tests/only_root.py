"""The mark of tests that look into processes which keep all but root out, or take another's uid."""

from __future__ import annotations

import os
from typing import Final

import pytest

only_root: Final = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: who else runs it may not look")

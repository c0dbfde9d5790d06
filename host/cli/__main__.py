"""``python -m host.cli`` is ``picoclaw``."""

from __future__ import annotations

from host.cli import main

main()

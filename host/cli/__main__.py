"""``python -m host.cli`` is ``picoclaw``."""

from host.cli import main

main()

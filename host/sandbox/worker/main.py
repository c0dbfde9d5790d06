"""Entry point of the supervisor: ``python -I -S -E main.py FD``, where FD is its end of the host's socket.

The host's packages are not importable here (isolated mode), and must not be: they would cost memory in every
fork. The directory of this file becomes a package of its own, so that the modules beside it import each other
relatively.
"""

import importlib
import os
import sys
import types

PACKAGE = "picoclaw_sandbox"


def main() -> None:
    """Run the supervisor on the inherited descriptor until the host closes it."""
    package = types.ModuleType(PACKAGE)
    package.__path__ = [os.path.dirname(os.path.realpath(__file__))]
    sys.modules[PACKAGE] = package
    importlib.import_module(f"{PACKAGE}.supervisor").serve(int(sys.argv[1]))


if __name__ == "__main__":
    main()

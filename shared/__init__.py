"""What the host and the tool server share."""

import sys
from types import ModuleType

# Plugins of pydantic would see every value that is validated, secrets too; and to look for some, the metadata
# of all that is installed is read. PYDANTIC_DISABLE_PLUGINS prevents that, but not the import of what reads
# metadata (email, zipfile, csv ...), a tenth of a start. Hence a stand-in for who looks.
_loader = ModuleType("pydantic.plugin._loader")
vars(_loader)["get_plugins"] = tuple
sys.modules.setdefault(_loader.__name__, _loader)

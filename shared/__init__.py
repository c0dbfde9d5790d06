"""What the host and the tool server share."""

import os

# Plugins of pydantic would see every value that is validated, secrets too; and to look for some, the metadata
# of all that is installed is read.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

import os
from typing import Final

from shared.processes import make_lazy

# Ends the spans of calls, which are not asked for: the host has its own.
make_lazy("anthropic", "types", "lib", late={"anthropic.lib._tracing.finish_api_call_span"})

WORKER: Final = "host.models.worker"
"""The process that the models' clients are in."""
PASSED_ON: Final = frozenset(
    {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR", "TZ"}
)
"""What of the host's environment is for the model's client, in capitals or not."""


def environment() -> dict[str, str]:
    """Return that process's environment."""
    passed_on = {name: value for name, value in os.environ.items() if name.upper() in PASSED_ON}
    return passed_on | {"PYDANTIC_DISABLE_PLUGINS": "__all__"}

"""Which API tokens no host is started with: anybody who reads the documentation could guess them."""

from __future__ import annotations

import re
from typing import Final

from shared.settings import Settings

SHORTEST: Final = 16
FEWEST_CHARACTERS: Final = 6
"""Different ones."""

# Atomic and possessive: it never goes back, however long a token is.
_WORD: Final = (
    r"(?>change[-_ .]?(?:me|this|it)|replace|your|insert|placeholder|example|sample|todo|fixme|dummy|secret|"
    r"token|password|passphrase|api|key|default|openssl|random|rand|hex|picoclaw|here|goes|to|of|the|me|with|"
    r"own|this|value|string|output|put|please|now)"
)
PLACEHOLDER: Final = re.compile(
    rf"(?:{_WORD}[-_ .]*+)++\d{{0,4}}|(?:change[-_ .]?me|replace|your|insert)[-_ .].*", re.I
)
MARKED: Final = re.compile(r"^(<.*>|\[.*\]|\{.*\}|\$\{?\w+\}?|%\w+%)$")


def fault_of(settings: Settings) -> str | None:
    """Return why the host isn't started with these tokens, as a sentence without them; None: it is."""
    tokens = {"API_TOKEN": settings.api_token, "API_TOKEN_PREVIOUS": settings.api_token_previous}
    for name, secret in tokens.items():
        fault = None if secret is None else _fault(secret.get_secret_value())
        if fault is not None:
            return f"{name} {fault}; make one with `openssl rand -hex 32` or `picoclaw init`"
    return None


def _fault(token: str) -> str | None:
    if len(token) < SHORTEST:
        return f"is shorter than {SHORTEST} characters"
    if PLACEHOLDER.fullmatch(token) or MARKED.match(token):
        return "is a placeholder"
    if len(set(token)) < FEWEST_CHARACTERS:
        return "repeats a few characters"
    return None

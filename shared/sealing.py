"""What others gave the host to keep, sealed with SEAL_KEY (AES-256-GCM, NIST SP 800-38D)."""

from __future__ import annotations

import os
from functools import cached_property
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from pydantic import SecretStr

NONCE: Final = 12
LEAST_KEY: Final = 32


class Seal:
    """Seals for one purpose: nothing that was sealed for another one can be opened."""

    def __init__(self, key: SecretStr | None, purpose: bytes) -> None:
        self._key = "" if key is None else key.get_secret_value()
        self._purpose = purpose

    @property
    def usable(self) -> bool:
        """Whether there is a key that is long enough."""
        return len(self._key) >= LEAST_KEY

    def close(self, plain: bytes, bound: bytes) -> bytes:
        """Return what can only be opened again for what it is bound to."""
        nonce = os.urandom(NONCE)
        return nonce + self._cipher.encrypt(nonce, plain, bound)

    def open(self, sealed: bytes, bound: bytes) -> bytes | None:
        """Return what was sealed; None where it was with another key, or is bound to something else."""
        from cryptography.exceptions import InvalidTag

        if not self.usable:
            return None
        try:
            return self._cipher.decrypt(sealed[:NONCE], sealed[NONCE:], bound)
        except InvalidTag:
            return None

    @cached_property
    def _cipher(self) -> AESGCM:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        return AESGCM(HKDF(SHA256(), 32, salt=None, info=self._purpose).derive(self._key.encode()))

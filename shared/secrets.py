"""Secret values: plain, ``file://name``, ``env://NAME`` or ``enc://<base64>``.

A sealed value is AES-256-GCM (NIST SP 800-38D) under a key that scrypt (RFC 7914) makes of a passphrase. Its
blob is: version, log2(n), r, p, one byte each; 16 bytes of salt; 12 bytes of nonce; ciphertext and tag. The
first 20 bytes are authenticated with it. Values that were sealed together share a salt, so that opening them
costs one derivation (some 80 ms) and not one each.
"""

from __future__ import annotations

import base64
import binascii
import os
import struct
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Final

from shared.regular_files import NotRegular, TooLong, read_regular

SEALED: Final = "enc://"
IN_FILE: Final = "file://"
IN_ENVIRONMENT: Final = "env://"

MAX_FILE_BYTES: Final = 64 * 1024

_VERSION: Final = 1
_COST: Final = (15, 8, 1)  # log2(n), r, p: 32 MiB and some 80 ms
_MOST_MEMORY: Final = 256 * 1024 * 1024
_HEADER: Final = struct.Struct(">BBBB16s")
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16


class SecretFault(Exception):
    """A secret value cannot be had; the sentence never holds it."""


class Sealer:
    """Seals values under one passphrase and one salt."""

    def __init__(self, passphrase: str) -> None:
        if not passphrase:
            raise SecretFault("the passphrase is empty")
        self._header = _HEADER.pack(_VERSION, *_COST, os.urandom(16))
        self._passphrase = passphrase

    def seal(self, value: str) -> str:
        """Return the value as ``enc://…``."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        nonce = os.urandom(_NONCE_BYTES)
        cipher = AESGCM(_key(self._passphrase, self._header))
        sealed = cipher.encrypt(nonce, value.encode(), self._header)
        return SEALED + base64.b64encode(self._header + nonce + sealed).decode()


def unseal(text: str, passphrase: str) -> str:
    """Return what ``enc://…`` holds; raises ``SecretFault`` for damage and for another passphrase."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    header, nonce, sealed = _parts(text)
    try:
        return AESGCM(_key(passphrase, header)).decrypt(nonce, sealed, header).decode()
    except InvalidTag:
        raise SecretFault("the passphrase is not the one it was encrypted with, or it is damaged") from None
    except UnicodeDecodeError:
        raise SecretFault("it does not hold text") from None


class SecretReader:
    """Turns secret values as they are written into what they stand for.

    ``ask`` is called once, and only if a sealed value is met while PICOCLAW_KEY_PASSPHRASE is unset.
    ``names`` collects the environment names that values were taken from.
    """

    def __init__(
        self, environ: Mapping[str, str], directory: Path, ask: Callable[[], str | None] | None = None
    ) -> None:
        self._environ = environ
        self._directory = directory
        self._ask = ask
        self._passphrase = environ.get("PICOCLAW_KEY_PASSPHRASE") or None
        self.names: set[str] = set()

    def read(self, text: str) -> str:
        """Return the secret; raises ``SecretFault``."""
        if text.startswith(SEALED):
            return unseal(text, self._known_passphrase())
        if text.startswith(IN_FILE):
            return self._from_file(text.removeprefix(IN_FILE))
        if text.startswith(IN_ENVIRONMENT):
            return self._from_environment(text.removeprefix(IN_ENVIRONMENT))
        return text

    def _known_passphrase(self) -> str:
        if self._passphrase is None and self._ask is not None:
            self._passphrase, self._ask = self._ask() or None, None
        if self._passphrase is None:
            raise SecretFault("it is encrypted and PICOCLAW_KEY_PASSPHRASE is not set")
        return self._passphrase

    def _from_environment(self, name: str) -> str:
        value = self._environ.get(name, "").strip()
        if not value:
            raise SecretFault("the environment variable it names is not set")
        self.names.add(name)
        return value

    def _from_file(self, name: str) -> str:
        directory = self._directory.resolve()
        try:
            path = (directory / name).resolve(strict=True)
            if not path.is_relative_to(directory):
                raise SecretFault("the file it names is not in the config directory")
            content = read_regular(path, MAX_FILE_BYTES, follow=False).decode().strip()
        except NotRegular:
            raise SecretFault("what it names is not a regular file") from None
        except TooLong:
            raise SecretFault("the file it names is larger than 64 KiB") from None
        except UnicodeDecodeError:
            raise SecretFault("the file it names is not text") from None
        except (OSError, ValueError, RuntimeError):
            raise SecretFault("the file it names cannot be read") from None
        if not content:
            raise SecretFault("the file it names is empty")
        return content


def _parts(text: str) -> tuple[bytes, bytes, bytes]:
    try:
        blob = base64.b64decode(text.removeprefix(SEALED), validate=True)
    except binascii.Error:
        raise SecretFault("what follows enc:// is not base64") from None
    if len(blob) < _HEADER.size + _NONCE_BYTES + _TAG_BYTES:
        raise SecretFault("what follows enc:// is too short")
    header, rest = blob[: _HEADER.size], blob[_HEADER.size :]
    return header, rest[:_NONCE_BYTES], rest[_NONCE_BYTES:]


@lru_cache(maxsize=8)
def _key(passphrase: str, header: bytes) -> bytes:
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

    version, log_n, r, p, salt = _HEADER.unpack(header)
    if version != _VERSION:
        raise SecretFault("it was encrypted by a newer version")
    if not (1 <= log_n <= 24 and 1 <= r <= 32 and 1 <= p <= 4 and (128 * r << log_n) <= _MOST_MEMORY):
        raise SecretFault("its scrypt parameters are out of bounds")
    return Scrypt(salt=salt, length=32, n=1 << log_n, r=r, p=p).derive(passphrase.encode())

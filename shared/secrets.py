"""Secret values: plain, ``file://name``, ``env://NAME``, ``enc://<base64>``, or text with ``${NAME}`` in it.

A sealed value is AES-256-GCM (NIST SP 800-38D) under a key that scrypt (RFC 7914) makes of a passphrase. Its
blob is: version, log2(n), r, p, one byte each; 16 bytes of salt; 12 bytes of nonce; ciphertext and tag. The
first 20 bytes are authenticated with it. Values that were sealed together share a salt, so that opening them
costs one derivation (some 80 ms) and not one each.

What sipeed/picoclaw sealed is read too (its docs/security/credential_encryption.md): 16 bytes of salt, 12 of
nonce, ciphertext and tag, under a key that HKDF makes of the passphrase and an SSH private key.

What others gave the host to keep is sealed with SEAL_KEY (``Seal``).
"""

from __future__ import annotations

import base64
import binascii
import errno
import hmac
import os
import re
import stat
import struct
from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from pydantic import SecretStr


class NotRegular(OSError):
    """It is a directory, a pipe, a device or a socket."""


class TooLong(OSError):
    """It holds more bytes than the caller takes."""


def read_regular(path: Path, most: int, *, follow: bool = True) -> bytes:
    """Return the content of a regular file of at most ``most`` bytes.

    Raises ``NotRegular``, ``TooLong``, or the ``OSError`` of opening and reading it. A pipe doesn't hang it
    (O_NONBLOCK, open(2)); with ``follow`` false a link is refused.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    descriptor = os.open(path, flags)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise NotRegular(errno.EINVAL, "it is not a regular file", str(path))
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(most + 1)
    finally:
        os.close(descriptor)
    if len(content) > most:
        raise TooLong(errno.EFBIG, f"it is larger than {most:,} bytes", str(path))
    return content


SEALED: Final = "enc://"
IN_FILE: Final = "file://"
IN_ENVIRONMENT: Final = "env://"
SECRET_NAMES: Final = re.compile(
    r"key|token|secret|passw|pwd|auth|cookie|credential|session|private|dsn", re.IGNORECASE
)
"""Names of variables and headers whose values are secret wherever they are written."""

MAX_FILE_BYTES: Final = 64 * 1024

_VERSION: Final = 1
_COST: Final = (15, 8, 1)  # log2(n), r, p: 32 MiB and some 80 ms
_MOST_MEMORY: Final = 256 * 1024 * 1024
_HEADER: Final = struct.Struct(">BBBB16s")
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_SALT_BYTES: Final = 16
_VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


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
        try:
            sealed = cipher.encrypt(nonce, value.encode(), self._header)
        except UnicodeEncodeError:
            raise SecretFault("a value is not text") from None
        return SEALED + base64.b64encode(self._header + nonce + sealed).decode()


def unseal(text: str, passphrase: str, environ: Mapping[str, str] = os.environ) -> str:
    """Return what ``enc://…`` holds; raises ``SecretFault`` for damage and for another passphrase.

    ``environ`` says where the SSH key of sipeed/picoclaw is.
    """
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    blob = _blob(text)
    header = blob[: _HEADER.size] if _is_ours(blob) else b""
    rest = blob[len(header) or _SALT_BYTES :]
    key = _key(passphrase, header) if header else _sipeed_key(passphrase, blob[:_SALT_BYTES], environ)
    try:
        return AESGCM(key).decrypt(rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], header or None).decode()
    except InvalidTag:
        other = "" if header else " or SSH key"
        said = f"the passphrase{other} is not the one it was encrypted with, or it is damaged"
        raise SecretFault(said) from None
    except UnicodeDecodeError:
        raise SecretFault("it does not hold text") from None


def has_variable(value: str) -> bool:
    """Return whether a value takes something from the environment."""
    return value.startswith(IN_ENVIRONMENT) or _VARIABLE.search(value) is not None


def is_secret_form(value: str) -> bool:
    """Return whether a value says itself that it stands for a secret."""
    return value.startswith((SEALED, IN_FILE, IN_ENVIRONMENT)) or any(
        SECRET_NAMES.search(match[1]) for match in _VARIABLE.finditer(value)
    )


class SecretReader:
    """Turns secret values as they are written into what they stand for.

    ``ask`` is called once, and only if a sealed value is met while PICOCLAW_KEY_PASSPHRASE is unset.
    ``names`` collects the environment names that secrets were taken from, ``expanded`` those of ``${NAME}``.
    """

    def __init__(
        self, environ: Mapping[str, str], directory: Path, ask: Callable[[], str | None] | None = None
    ) -> None:
        self._environ = environ
        self.expanded: set[str] = set()
        self._directory = directory
        self._ask = ask
        self._passphrase = environ.get("PICOCLAW_KEY_PASSPHRASE") or None
        self.names: set[str] = set()

    def read(self, text: str) -> str:
        """Return the secret; raises ``SecretFault``."""
        if text.startswith(SEALED):
            return unseal(text, self._known_passphrase(), self._environ)
        if text.startswith(IN_FILE):
            return self._from_file(text.removeprefix(IN_FILE))
        if text.startswith(IN_ENVIRONMENT):
            return self._from_environment(text.removeprefix(IN_ENVIRONMENT))
        return self.expand(text)

    def expand(self, text: str) -> str:
        """Return the text with each ``${NAME}`` and ``${NAME:-default}`` replaced; raises ``SecretFault``."""
        return _VARIABLE.sub(self._variable, text)

    def _variable(self, match: re.Match[str]) -> str:
        value = self._environ.get(match[1]) or match[2]
        if value is None:
            raise SecretFault(f"the environment variable {match[1]} is not set")
        self.expanded.add(match[1])
        return value

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
            content = read_regular(path, MAX_FILE_BYTES, follow=False).decode("utf-8-sig").strip()
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


def _blob(text: str) -> bytes:
    try:
        blob = base64.b64decode(text.removeprefix(SEALED), validate=True)
    except binascii.Error:
        raise SecretFault("what follows enc:// is not base64") from None
    if len(blob) < _SALT_BYTES + _NONCE_BYTES + _TAG_BYTES:
        raise SecretFault("what follows enc:// is too short")
    return blob


def _is_ours(blob: bytes) -> bool:
    """Return whether a blob begins as ours do, which one of 16 random bytes does once in 10 million times."""
    version, log_n, r, p = blob[:4]
    bounded = 1 <= log_n <= 24 and 1 <= r <= 32 and 1 <= p <= 4 and (128 * r << log_n) <= _MOST_MEMORY
    return version == _VERSION and bounded and len(blob) >= _HEADER.size + _NONCE_BYTES + _TAG_BYTES


@lru_cache(maxsize=8)
def _key(passphrase: str, header: bytes) -> bytes:
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

    _, log_n, r, p, salt = _HEADER.unpack(header)
    return Scrypt(salt=salt, length=32, n=1 << log_n, r=r, p=p).derive(os.fsencode(passphrase))


def _sipeed_key(passphrase: str, salt: bytes, environ: Mapping[str, str]) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    default = f"{environ.get('HOME', '')}/.ssh/picoclaw_ed25519.key"
    path = Path(environ.get("PICOCLAW_SSH_KEY_PATH") or default)
    try:
        digest = sha256(read_regular(path, MAX_FILE_BYTES)).digest()
    except (OSError, ValueError):
        raise SecretFault(
            "it was encrypted by sipeed/picoclaw or a newer version; "
            f"for the former its SSH key is needed, and {path} cannot be read (PICOCLAW_SSH_KEY_PATH)"
        ) from None
    material = hmac.digest(digest, os.fsencode(passphrase), "sha256")
    return HKDF(SHA256(), length=32, salt=salt, info=b"picoclaw-credential-v1").derive(material)


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
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, plain, bound)

    def open(self, sealed: bytes, bound: bytes) -> bytes | None:
        """Return what was sealed; None for nothing, another key, or what is bound to something else."""
        from cryptography.exceptions import InvalidTag

        if not self.usable:
            return None
        try:
            return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], bound)
        except (InvalidTag, ValueError):
            return None

    @cached_property
    def _cipher(self) -> AESGCM:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        return AESGCM(HKDF(SHA256(), 32, salt=None, info=self._purpose).derive(self._key.encode()))

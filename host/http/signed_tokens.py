"""Tokens that an identity provider signed (JWT, RFC 7519): what they claim, verified with its keys.

Algorithms are what a key says that it is for, never what a token asks for (RFC 8725, section 3.1).
"""

import json
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import anyio
import anyio.to_thread
import httpx2
import jwt
from anyio.abc import TaskGroup

from host.egress.bounded import ACCEPTED, TooMuch, unpacked
from host.http.callers import Enrolment, terms_of
from shared.clock import monotonic_ms
from shared.errors import Duplicate, Misconfigured
from shared.principals import Principal, PrincipalStatus
from shared.secrets import read_regular
from shared.settings.access import Jwt

logger = logging.getLogger("picoclaw.auth")

ALGORITHMS: Final = {("RSA", None): "RS256", ("EC", "P-256"): "ES256", ("OKP", "Ed25519"): "EdDSA"}
"""What each kind of key signs with; all others, and HMAC's, are left out."""
PUBLIC: Final = ("kty", "crv", "x", "y", "n", "e")
LONGEST: Final = 8 * 1024
"""Bytes of a token."""
SUBJECT: Final = re.compile("[^\0\ud800-\udfff]{1,255}")
"""A subject that the store can keep: not NUL, no half of a surrogate pair."""
LAST_S: Final = 253_402_300_799
"""9999-12-31T23:59:59Z: no later instant can be said in four digits of a year (RFC 3339)."""
SKEW_S: Final = 60
MOST_BYTES: Final = 256 * 1024
"""Bytes of a set of keys."""
MOST_KEYS: Final = 100
RSA_BITS: Final = range(2048, 8192 + 1)
"""Smaller ones are too weak (RFC 7518, section 3.3); larger ones cost a millisecond a token."""
ASKED: Final = {"Accept": "application/json", **ACCEPTED}
WITHIN_S: Final = 5.0
ASK_EVERY_MS: Final = 60_000
"""How often a key that isn't known makes the host read all keys again."""
RENEW_EVERY_S: Final = 600.0

KeyName = tuple[str | None, str]
"""A key's id, and its algorithm."""


class Claims(NamedTuple):
    """What a valid token says. ``scopes`` None: it has no such claim. ``expires_at``: the skew included."""

    subject: str
    scopes: frozenset[str] | None
    expires_at: int


class Unreadable(Exception):
    """The keys can't be had; the sentence says why."""


class Keys:
    """An issuer's keys. When they can't be had anew, the last ones go on counting."""

    def __init__(self, settings: Jwt) -> None:
        self._file, self._url = settings.jwks_file, settings.jwks_url or ""
        self._known: Mapping[KeyName, jwt.PyJWK] = {}
        self._reading = anyio.Lock()
        self._read_at = -math.inf

    async def open(self) -> None:
        """Read a file of keys; raises Misconfigured. A server is asked behind the start."""
        if self._file is None:
            return
        try:
            self._known = read_keys(await self._text())
        except Unreadable as error:
            raise Misconfigured(f"auth.jwt.jwks_file: {error}") from None

    async def keep_fresh(self) -> None:
        """Read the keys now and then, so that one which its issuer took back goes."""
        while True:
            await self._renew(0)
            await anyio.sleep(RENEW_EVERY_S)

    async def find(self, key_id: str | None, algorithm: str) -> jwt.PyJWK | None:
        """Return the key of this id, and without one the only key of this algorithm."""
        key = self._pick(key_id, algorithm)
        if key is None:
            await self._renew(ASK_EVERY_MS)
            key = self._pick(key_id, algorithm)
        return key

    def _pick(self, key_id: str | None, algorithm: str) -> jwt.PyJWK | None:
        if key_id is not None:
            return self._known.get((key_id, algorithm))
        fitting = [key for (_, of), key in self._known.items() if of == algorithm]
        return fitting[0] if len(fitting) == 1 else None

    async def _renew(self, every_ms: float) -> None:
        async with self._reading:
            if monotonic_ms() < self._read_at + every_ms:
                return
            self._read_at = monotonic_ms()
            try:
                self._known = read_keys(await self._text())
            except Unreadable as error:
                logger.warning("auth.jwt: the keys of the issuer can't be read: %s", error)

    async def _text(self) -> bytes:
        try:
            with anyio.fail_after(WITHIN_S):
                return await (_of_file(self._file) if self._file else _of_server(self._url))
        except TimeoutError:
            raise Unreadable(f"nothing came within {WITHIN_S:g} s") from None


async def _of_file(path: Path) -> bytes:
    try:
        return await anyio.to_thread.run_sync(read_regular, path, MOST_BYTES, abandon_on_cancel=True)
    except OSError as error:
        raise Unreadable(f"{path} can't be read ({error.strerror})") from None


async def _of_server(url: str) -> bytes:
    try:
        async with httpx2.AsyncClient() as client, client.stream("GET", url, headers=ASKED) as answer:
            if answer.status_code != httpx2.codes.OK:
                raise Unreadable(f"{url} answered {answer.status_code}")
            text = b""
            async for piece in unpacked(answer.aiter_raw(), answer.headers.get("content-encoding", "")):
                text += piece
                if len(text) > MOST_BYTES:
                    break
            return text
    except TooMuch as error:
        raise Unreadable(f"{url} {error}") from None
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise Unreadable(f"{url} can't be reached ({type(error).__name__})") from None


def read_keys(text: bytes) -> Mapping[KeyName, jwt.PyJWK]:
    """Return the keys of a set (RFC 7517) that can verify; raises Unreadable when there is none."""
    if len(text) > MOST_BYTES:
        raise Unreadable(f"they are more than {MOST_BYTES} bytes")
    try:
        keys = dict(filter(None, map(_key, json.loads(text)["keys"][:MOST_KEYS])))
    except (ValueError, TypeError, LookupError, RecursionError):
        raise Unreadable("it is no set of keys (RFC 7517)") from None
    if not keys:
        raise Unreadable("there is no key for RS256, ES256 or EdDSA")
    return keys


def _key(said: Mapping[str, Any]) -> tuple[KeyName, jwt.PyJWK] | None:
    try:
        algorithm = ALGORITHMS[said["kty"], said.get("crv")]
        if said.get("alg", algorithm) != algorithm or said.get("use", "sig") != "sig":
            return None
        if not isinstance(said.get("kid", ""), str):
            return None
        key = jwt.PyJWK({name: said[name] for name in PUBLIC if name in said}, algorithm)
    except (jwt.PyJWTError, LookupError, TypeError, ValueError, AttributeError):
        return None
    if algorithm == "RS256" and key.key.key_size not in RSA_BITS:
        return None
    return (said.get("kid"), algorithm), key


class SignedTokens:
    """Reads tokens of one issuer for one audience, and knows the principals that they name."""

    def __init__(self, settings: Jwt, keys: Keys, enrolment: Enrolment) -> None:
        self._settings = settings
        self._keys = keys
        self._enrolment = enrolment

    async def principal(self, token: bytes) -> tuple[Principal, Claims] | None:
        """Return whom a valid token names, made now where the settings say so; None: nobody, or deleted.

        Raises Conflict when it can't be made here.
        """
        claims = await self.read(token)
        if claims is None:
            return None
        subject = (self._settings.issuer or "", claims.subject)
        found = await self._enrolment.named(*subject)
        if found is None and self._settings.create:
            terms = terms_of(self._settings.defaults.model_dump())
            try:
                found = await self._enrolment.make(claims.subject, terms, *subject)
            except Duplicate:
                # Its first requests came at once, and another one of them made it.
                found = await self._enrolment.named(*subject)
        if found is None or found.status in (PrincipalStatus.DELETING, PrincipalStatus.DELETED):
            return None
        return found, claims

    async def read(self, token: bytes) -> Claims | None:
        """Return what the token says, None unless it is valid now."""
        if len(token) > LONGEST:
            return None
        try:
            header = jwt.get_unverified_header(token)
            if header["alg"] not in ALGORITHMS.values():
                return None
            key = await self._keys.find(header.get("kid"), header["alg"])
            if key is None:
                return None
            said = jwt.decode(
                token,
                key,
                audience=self._settings.audience,
                issuer=self._settings.issuer,
                leeway=SKEW_S,
                options={"require": ["exp", "iss", "aud"]},
            )
        # What strangers send may be anything: numbers without end, objects for texts.
        except (jwt.PyJWTError, LookupError, ValueError, TypeError, ArithmeticError):
            return None
        return self._claims(said)

    def _claims(self, said: Mapping[str, Any]) -> Claims | None:
        subject = said.get(self._settings.principal_claim)
        if not isinstance(subject, str) or not SUBJECT.fullmatch(subject):
            return None
        given = said.get(self._settings.scopes_claim)
        words = given.split() if isinstance(given, str) else given
        listed = frozenset(filter(_is_text, words)) if isinstance(words, list) else frozenset[str]()
        expires_at = min(int(said["exp"]) + SKEW_S, LAST_S) * 1000
        return Claims(subject, None if given is None else listed, expires_at)


async def open_signed_tokens(settings: Jwt, enrolment: Enrolment, background: TaskGroup) -> SignedTokens:
    """Return the reader of an issuer's tokens; raises Misconfigured for a file without keys."""
    keys = Keys(settings)
    await keys.open()
    background.start_soon(keys.keep_fresh)
    return SignedTokens(settings, keys, enrolment)


def _is_text(item: object) -> bool:
    return isinstance(item, str)

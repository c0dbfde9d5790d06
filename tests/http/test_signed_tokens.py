"""Tokens of an identity provider: which are believed, what they claim, and how its keys are had."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from host.http.signed_tokens import LONGEST, Claims, Keys, SignedTokens, Unreadable, read_keys
from shared.errors import Misconfigured
from shared.settings import SettingsError, load
from shared.settings.access import Jwt
from tests.http.identity_provider import AUDIENCE, ISSUER, Provider, public, rsa_key, serving

NOBODY: Any = None
"""What is only read needs no principals."""


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with serving(Provider()) as provider:
        yield provider


def reader(provider: Provider, **settings: Any) -> SignedTokens:
    asked = {"issuer": ISSUER, "audience": AUDIENCE, "jwks_url": provider.url} | settings
    return tokens_of(Jwt.model_validate(asked))


def tokens_of(settings: Jwt, keys: Keys | None = None) -> SignedTokens:
    return SignedTokens(settings, keys or Keys(settings), NOBODY)


async def claims(provider: Provider, token: str, **settings: Any) -> Claims | None:
    return await reader(provider, **settings).read(token.encode())


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [(rsa_key(), "RS256"), (ec.generate_private_key(ec.SECP256R1()), "ES256")],
    ids=["RS256", "ES256"],
)
@pytest.mark.parametrize("kid", ["k", None])
async def test_each_algorithm_is_believed_by_a_key_with_a_name_or_by_the_only_one(
    key: Any, algorithm: str, kid: str | None
) -> None:
    with serving(Provider(key, algorithm, kid)) as provider:
        found = await claims(provider, provider.token(sub="bob"))
    assert found is not None
    assert (found.subject, found.scopes) == ("bob", None)


async def test_the_claims_name_the_principal_and_its_scopes(provider: Provider) -> None:
    for said in ("chat tasks nonsense", ["chat", "tasks", "nonsense", 7]):
        found = await claims(provider, provider.token(scope=said))
        assert found is not None
        assert found.scopes == frozenset({"chat", "tasks", "nonsense"})
    found = await claims(provider, provider.token(scope={"chat": True}))
    assert found is not None
    assert found.scopes == frozenset()
    other = provider.token(sub=None, email="ann@x", roles=["chat"])
    found = await claims(provider, other, principal_claim="email", scopes_claim="roles")
    assert found is not None
    assert found[:2] == ("ann@x", frozenset({"chat"}))
    assert await claims(provider, other) is None


NOW = int(time.time())
WRONG: dict[str, dict[str, Any]] = {
    "another issuer": {"iss": "https://evil.example"},
    "no issuer": {"iss": None},
    "another audience": {"aud": "other"},
    "no audience": {"aud": None},
    "expired": {"exp": NOW - 61},
    "without an end": {"exp": None},
    "an end that is no number": {"exp": "soon"},
    "not yet": {"nbf": NOW + 86_400},
    "no subject": {"sub": None},
    "a subject that is a number": {"sub": 7},
    "an empty subject": {"sub": ""},
    "a long subject": {"sub": "x" * 256},
    "a subject with NUL": {"sub": "a\0b"},
    "a subject with half of a surrogate pair": {"sub": "a\ud800"},
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
async def test_a_token_that_is_not_for_this_host_now_is_not_believed(
    provider: Provider, wrong: dict[str, Any]
) -> None:
    issued = provider.key
    said = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "exp": NOW + 3600} | wrong
    kept = {name: value for name, value in said.items() if value is not None}
    # Not through the library, which wouldn't sign some of them.
    head = {"alg": "EdDSA", "kid": "one"}
    text = b".".join(
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (head, kept)
    )
    token = text + b"." + base64.urlsafe_b64encode(issued.sign(text)).rstrip(b"=")
    assert await reader(provider).read(token) is None


async def test_a_minute_of_skew_is_forgiven(provider: Provider) -> None:
    now = int(time.time())
    found = await claims(provider, provider.token(exp=now - 40, nbf=now + 40))
    assert found is not None
    assert found.expires_at == (now - 40 + 60) * 1000


def unsigned(alg: str) -> str:
    head, body = {"alg": alg, "kid": "one"}, {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "exp": NOW + 3600}
    parts = (
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in (head, body)
    )
    return ".".join([*parts, ""])


async def test_no_other_algorithm_is_believed_whatever_signs(provider: Provider) -> None:
    for alg in ("none", "None", "NONE", "", "EdDSA"):
        assert await claims(provider, unsigned(alg)) is None
    body = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "exp": NOW + 3600}
    # The public key as a secret: what those fell for who believed the token's own algorithm.
    secret = public(provider.key, None)["x"]
    for alg in ("HS256", "HS384", "HS512"):
        assert await claims(provider, jwt.encode(body, secret.ljust(64, "x"), alg, {"kid": "one"})) is None
    stranger = Provider(kid="one")
    assert await claims(provider, stranger.token()) is None
    with serving(Provider(rsa_key(), "RS256")) as other:
        for alg in ("PS256", "RS512"):
            other.algorithm = alg
            assert await claims(other, other.token()) is None


async def test_a_token_of_more_than_eight_kibibytes_is_not_even_read(provider: Provider) -> None:
    token = provider.token(more="x" * LONGEST)
    assert await claims(provider, token) is None
    assert await claims(provider, provider.token(more="x" * 4000)) is not None


@given(st.one_of(st.binary(max_size=200), st.from_regex(rb"[A-Za-z0-9_-]{1,40}(\.[A-Za-z0-9_-]{0,40}){1,4}")))
def test_whatever_a_stranger_sends_is_no_more_than_not_believed(token: bytes) -> None:
    settings = Jwt(issuer=ISSUER, audience=AUDIENCE, jwks_url="http://127.0.0.1:9/")
    reading = tokens_of(settings).read(token)
    with pytest.raises(StopIteration) as ended:
        reading.send(None)
    assert ended.value.value is None


async def test_deep_and_odd_json_is_not_believed(provider: Provider) -> None:
    for head in (
        "[" * 4000,
        "{}",
        "[]",
        '{"alg": {}}',
        '{"alg": "EdDSA", "kid": []}',
        '{"alg": "EdDSA", "crit": ["x"]}',
    ):
        part = base64.urlsafe_b64encode(head.encode()).rstrip(b"=").decode()
        assert await claims(provider, f"{part}.{part}.AAAA") is None


async def test_a_new_key_is_asked_for_once_a_minute_and_known_ones_are_not(provider: Provider) -> None:
    with serving(Provider()) as own:
        tokens = reader(own)
        assert await tokens.read(own.token().encode()) is not None
        assert own.asked == 1
        before = own.token()
        own.key, own.kid = ed25519.Ed25519PrivateKey.generate(), "two"
        for _ in range(5):
            # A minute has not gone by.
            assert await tokens.read(own.token().encode()) is None
            assert await tokens.read(before.encode()) is not None
        assert own.asked == 1
        assert await claims(own, own.token()) is not None


@pytest.mark.parametrize(
    "ill",
    [
        lambda provider: setattr(provider, "status", 503),
        lambda provider: setattr(provider, "status", 302),
        lambda provider: setattr(provider, "answer", b"not json"),
        lambda provider: setattr(provider, "answer", b'{"keys": []}'),
        lambda provider: setattr(provider, "answer", b"[" * 300_000),
        lambda provider: setattr(provider, "url", "http://127.0.0.1:9/"),
    ],
)
async def test_a_sick_key_server_keeps_the_last_keys(ill: Callable[[Provider], None]) -> None:
    with serving(Provider()) as own:
        settings = Jwt(issuer=ISSUER, audience=AUDIENCE, jwks_url=own.url)
        keys = Keys(settings)
        tokens = tokens_of(settings, keys)
        assert await tokens.read(own.token().encode()) is not None
        ill(own)
        keys._url = own.url
        await keys._renew(0)
        assert await tokens.read(own.token().encode()) is not None


async def test_a_file_of_keys_stops_the_start_when_it_holds_none(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    provider = Provider()
    settings = Jwt(issuer=ISSUER, audience=AUDIENCE, jwks_file=path)
    os.mkfifo(path)
    with pytest.raises(Misconfigured, match="not a regular file"):
        await Keys(settings).open()
    path.unlink()
    for text, said in ((None, "can't be read"), (b"{}", "no set of keys"), (b'{"keys": [{}]}', "no key for")):
        if text is not None:
            path.write_bytes(text)
        with pytest.raises(Misconfigured, match=f"jwks_file: .*{said}"):
            await Keys(settings).open()
    path.write_bytes(provider.jwks())
    keys = Keys(settings)
    await keys.open()
    assert await tokens_of(settings, keys).read(provider.token().encode()) is not None


def test_of_a_set_of_keys_only_those_that_verify_are_taken() -> None:
    good = public(ed25519.Ed25519PrivateKey.generate(), "good")
    bad = [
        public(rsa_key(1024), "weak"),
        public(ec.generate_private_key(ec.SECP384R1()), "curve"),
        public(ed25519.Ed25519PrivateKey.generate(), "encrypts", use="enc"),
        public(rsa_key(), "other", alg="PS256"),
        {"kty": "oct", "k": "c2VjcmV0", "kid": "secret", "alg": "HS256"},
        {"kty": "RSA", "kid": "broken"},
        {"kty": ["RSA"]},
        public(ed25519.Ed25519PrivateKey.generate(), "odd") | {"kid": []},
        {"kid": "nothing"},
        7,
    ]
    assert list(read_keys(json.dumps({"keys": [*bad, good]}).encode())) == [("good", "EdDSA")]
    with pytest.raises(Unreadable):
        read_keys(json.dumps({"keys": bad}).encode())


UNUSABLE = [
    ({"issuer": ISSUER, "jwks_file": "k"}, "audience"),
    ({"issuer": ISSUER, "audience": "a"}, "jwks_file"),
    ({"issuer": ISSUER, "audience": "a", "jwks_file": "k", "jwks_url": "https://k"}, "jwks_file"),
    ({"issuer": ISSUER, "audience": "a", "jwks_file": "k", "create": True}, "spend without limit"),
    (
        {
            "issuer": ISSUER,
            "audience": "a",
            "jwks_file": "k",
            "create": True,
            "defaults": {"scopes": ["chat"]},
        },
        "spend without limit",
    ),
    ({"issuer": ISSUER, "audience": "a", "jwks_file": "k", "defaults": {"scopes": ["root"]}}, "'root'"),
]


@pytest.mark.parametrize(("said", "sentence"), UNUSABLE)
def test_settings_that_would_let_too_many_in_stop_the_start(
    tmp_path: Path, said: dict[str, Any], sentence: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"auth": {"jwt": said}}))
    with pytest.raises(SettingsError, match=r"auth\.jwt") as stopped:
        load({"HOME": str(tmp_path), "PICOCLAW_HOME": str(tmp_path)})
    assert sentence in str(stopped.value)


def test_with_a_limit_in_its_defaults_a_token_may_make_its_principal(tmp_path: Path) -> None:
    defaults = {"budgets": {"day": {"dollars": 1}}, "scopes": ["usage", "chat"]}
    said = {"issuer": ISSUER, "audience": "a", "jwks_file": "k", "create": True, "defaults": defaults}
    (tmp_path / "config.json").write_text(json.dumps({"auth": {"jwt": said}}))
    settings = load({"HOME": str(tmp_path), "PICOCLAW_HOME": str(tmp_path)})
    assert settings.auth.jwt.defaults.scopes == ("chat", "usage")
    defaults["models"] = ["huge"]
    models = [{"model_name": "small", "model": "claude-haiku-4-5", "api_base": "https://models.example"}]
    (tmp_path / "config.json").write_text(json.dumps({"auth": {"jwt": said}, "model_list": models}))
    with pytest.raises(SettingsError) as stopped:
        load({"HOME": str(tmp_path), "PICOCLAW_HOME": str(tmp_path), "ANTHROPIC_API_KEY": "sk-1"})
    assert "auth.jwt.defaults.models.0 must be one of the names in model_list: small" in str(stopped.value)

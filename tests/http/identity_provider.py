"""An identity provider: its keys, the tokens that it signs, and its key server on loopback."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

ISSUER = "https://login.example"
AUDIENCE = "picoclaw"


def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


def public(key: Any, key_id: str | None, **more: Any) -> dict[str, Any]:
    """The public half as a JSON Web Key."""
    kinds = {rsa.RSAPrivateKey: "RSAAlgorithm", ec.EllipticCurvePrivateKey: "ECAlgorithm"}
    name = next((of for kind, of in kinds.items() if isinstance(key, kind)), "OKPAlgorithm")
    said = getattr(jwt.algorithms, name).to_jwk(key.public_key(), as_dict=True)
    return {**said, **({} if key_id is None else {"kid": key_id}), **more}


@dataclass
class Provider:
    """Signs with the key ``kid``; whoever asks its server gets ``keys`` as they are then."""

    key: Any = field(default_factory=ed25519.Ed25519PrivateKey.generate)
    algorithm: str = "EdDSA"
    kid: str | None = "one"
    answer: bytes | None = None
    status: int = 200
    asked: int = 0
    url: str = ""

    def jwks(self) -> bytes:
        return json.dumps({"keys": [public(self.key, self.kid)]}).encode()

    def token(self, *, headers: dict[str, Any] | None = None, **claims: Any) -> str:
        """A token for Ann that lasts an hour, unless the claims say otherwise; None leaves one out."""
        now = int(time.time())
        said = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "exp": now + 3600, "iat": now} | claims
        kept = {name: value for name, value in said.items() if value is not None}
        named = {} if self.kid is None else {"kid": self.kid}
        return jwt.encode(kept, self.key, self.algorithm, {**named, **(headers or {})})


@contextmanager
def serving(provider: Provider) -> Iterator[Provider]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            provider.asked += 1
            body = provider.jwks() if provider.answer is None else provider.answer
            self.send_response(provider.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    provider.url = f"http://127.0.0.1:{server.server_port}/keys"
    try:
        yield provider
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

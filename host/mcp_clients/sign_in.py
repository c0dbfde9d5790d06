"""OAuth at other people's MCP servers, by the SDK's client: tokens in runs, and the sign-in of a person.

A run never begins a sign-in: it adds the token that is kept, renews it, and tells what is missing. Importing
this takes half a second.
"""

from collections.abc import AsyncGenerator, Mapping
from functools import partial
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import anyio
import httpx2
from anyio.abc import TaskGroup
from mcp.client.auth import OAuthClientProvider
from mcp.client.auth.utils import extract_field_from_www_auth
from mcp.shared.auth import (
    AuthorizationCodeResult,
    OAuthClientInformationFull,
    OAuthClientMetadata,
    OAuthMetadata,
    OAuthToken,
    ProtectedResourceMetadata,
)
from pydantic import AnyUrl, BaseModel

from host.egress.addresses import AddressPolicy, PinnedTransport
from host.mcp_clients.server_config import SignIn
from shared.errors import Conflict, InvalidInput, PicoError
from shared.untrusted import one_line

Flow = AsyncGenerator[httpx2.Request, httpx2.Response]

PERSON_SECONDS: Final = 600.0
"""How long a person may take to sign in."""
REQUEST_SECONDS: Final = 30.0
HELLO: Final = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "picoclaw", "version": "1"},
    },
}


PARTS: Final[Mapping[str, tuple[str, type[BaseModel]]]] = {
    "tokens": ("current_tokens", OAuthToken),
    "client": ("client_info", OAuthClientInformationFull),
    "metadata": ("oauth_metadata", OAuthMetadata),
    "resource": ("protected_resource_metadata", ProtectedResourceMetadata),
}
"""What is kept of a sign-in, and where the SDK has it."""


class _Provider(OAuthClientProvider):
    """The SDK's provider on a sign-in of the store; it is its own ``TokenStorage``."""

    def __init__(self, sign_in: SignIn, redirect_uri: str | None = None, **handlers: Any) -> None:
        uris = None if redirect_uri is None else [AnyUrl(redirect_uri)]
        metadata = OAuthClientMetadata(redirect_uris=uris, client_name="PicoClaw")
        super().__init__(sign_in.url, metadata, self, **handlers)
        self.sign_in = sign_in

    async def _initialize(self) -> None:
        # The SDK keeps neither when a token ends nor where it is renewed; after a restart both are needed.
        kept, context = await self.sign_in.load(), self.context
        for name, (field, kind) in PARTS.items():
            value = kept.get(name)
            setattr(context, field, None if value is None else kind.model_validate(value))
        context.token_expiry_time = kept.get("expires_at")
        self._initialized = True

    async def set_tokens(self, tokens: OAuthToken) -> None:
        """Keep everything that the next run needs."""
        context = self.context
        parts = {name: getattr(context, field) for name, (field, _) in PARTS.items()} | {"tokens": tokens}
        record = {name: part.model_dump(mode="json") for name, part in parts.items() if part is not None}
        await self.sign_in.save({**record, "expires_at": context.token_expiry_time})

    async def get_tokens(self) -> OAuthToken | None:
        """Return nothing: ``_initialize`` has loaded them."""
        return self.context.current_tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        """Return nothing new, for the same reason."""
        return self.context.client_info

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        """Keep nothing yet: a client without tokens is of no use."""


class Token(_Provider):
    """Adds the token to a run's requests; renews it when it has ended, one run of all hosts at a time."""

    async def _auth_flow(self, request: httpx2.Request) -> Flow:
        refused: OAuthToken | None = None
        while True:
            async with self.sign_in.turn(partial(self._ended, refused)) as ours:
                if ours:
                    await self._renew()
            self._add_auth_header(request)
            response = yield request
            if response.status_code != 401 or refused or not self.context.can_refresh_token():
                break
            refused = self.context.current_tokens
        if response.status_code == 401 or _wants_more(response):
            self.sign_in.refused(httpx2.Response(response.status_code, headers=response.headers))
        elif response.is_success:
            self.sign_in.accepted()

    async def _renew(self) -> None:
        # A refresh token may be good once: whoever sent it keeps what comes for it, also when cancelled.
        with anyio.move_on_after(REQUEST_SECONDS, shield=True):
            async with _http(AddressPolicy(any_address=True)) as http:
                await self._handle_refresh_response(await http.send(await self._refresh_token()))

    async def _ended(self, refused: OAuthToken | None) -> bool:
        await self._initialize()
        context = self.context
        ended = context.current_tokens == refused if refused else not context.is_token_valid()
        return ended and context.can_refresh_token()


def _http(policy: AddressPolicy, **more: Any) -> httpx2.AsyncClient:
    """Return a client for an authorization server, or for a server as that one is found by it."""
    headers = {"Accept": "application/json, text/event-stream", "Accept-Encoding": "identity"}
    transport = PinnedTransport(policy)
    return httpx2.AsyncClient(
        transport=transport, headers=headers, timeout=REQUEST_SECONDS, trust_env=False, **more
    )


def _wants_more(response: httpx2.Response) -> bool:
    return (
        response.status_code == 403 and extract_field_from_www_auth(response, "error") == "insufficient_scope"
    )


class _Asking(_Provider):
    """Goes the whole way of a sign-in, from where a run was refused if one was."""

    async def _initialize(self) -> None:
        await super()._initialize()
        context, sign_in = self.context, self.sign_in
        if sign_in.challenge is None or sign_in.challenge.status_code != 403:
            context.current_tokens = None
        uris = context.client_metadata.redirect_uris
        if context.client_info and context.client_info.redirect_uris != uris:
            context.client_info = None
        if sign_in.client_id:
            method = "client_secret_basic" if sign_in.client_secret else "none"
            context.client_info = OAuthClientInformationFull(
                client_id=sign_in.client_id,
                client_secret=sign_in.client_secret,
                token_endpoint_auth_method=method,
                redirect_uris=uris,
            )

    async def _auth_flow(self, request: httpx2.Request) -> Flow:
        flow, challenge = super()._auth_flow(request), self.sign_in.challenge
        try:
            wanted = await anext(flow)
            while True:
                if challenge is not None and wanted is request:
                    answer, challenge = challenge, None
                    answer.request = request
                else:
                    answer = yield wanted
                wanted = await flow.asend(answer)
        except StopAsyncIteration:
            return
        finally:
            await flow.aclose()


class Attempt:
    """A sign-in that waits for a person: begun by one request, ended by another."""

    def __init__(self, sign_in: SignIn, redirect_uri: str, allowed_hosts: frozenset[str]) -> None:
        self._sign_in = sign_in
        self._redirect_uri = redirect_uri
        # The operator named the server, not whom it sends us to: its own host, named and public ones.
        own = urlsplit(sign_in.url).hostname or ""
        self._policy = AddressPolicy(allowed_hosts | {own})
        self._asked, self._answered, self._ended = anyio.Event(), anyio.Event(), anyio.Event()
        self._address = ""
        self._answer = AuthorizationCodeResult(code="")
        self._problem: str | None = None
        self._scope = anyio.CancelScope()

    async def begin(self, group: TaskGroup) -> str:
        """Return the address at which a person signs in; raises Conflict with the reason."""
        group.start_soon(self._go)
        await self._asked.wait()
        self._check()
        if not self._address:
            raise Conflict(f"{self._sign_in.name} serves without a sign-in: there is nothing to do")
        return self._address

    async def end(self, callback: str) -> None:
        """Take the address that the browser was sent back to; raises InvalidInput, Conflict."""
        query = callback.strip().partition("?")[2].partition("#")[0]
        given = {name: values[0] for name, values in parse_qs(query).items()}
        if given.get("state") not in parse_qs(urlsplit(self._address).query).get("state", ()):
            raise InvalidInput("callback: is not the address that this sign-in leads back to")
        if "error" in given:
            self.give_up()
            said = given.get("error_description") or given["error"]
            raise Conflict(f"The sign-in was refused: {one_line(said)[:300]}")
        self._answer = AuthorizationCodeResult(
            code=given.get("code", ""), state=given["state"], iss=given.get("iss")
        )
        self._answered.set()
        await self._ended.wait()
        self._check()

    def give_up(self) -> None:
        """End it; whoever waits hears that."""
        self._problem = "The sign-in was given up; begin again"
        self._scope.cancel()

    def _check(self) -> None:
        if self._problem is not None:
            raise Conflict(self._problem)

    async def _go(self) -> None:
        try:
            with self._scope, anyio.fail_after(PERSON_SECONDS):
                await self._ask_server()
            if self._problem is None and self._address:
                self._sign_in.accepted()
        except TimeoutError:
            self._problem = "Nobody signed in in time; begin again"
        except PicoError as error:
            self._problem = error.message
        except Exception as error:  # noqa: BLE001 - the SDK raises whatever a server makes it raise
            self._problem = f"The sign-in failed: {one_line(str(error) or type(error).__name__)[:300]}"
        finally:
            self._asked.set()
            self._ended.set()

    async def _ask_server(self) -> None:
        auth = _Asking(
            self._sign_in,
            self._redirect_uri,
            redirect_handler=self._show,
            callback_handler=self._wait,
            client_metadata_url=self._sign_in.client_metadata_url,
        )
        async with _http(self._policy, auth=auth) as http:
            request = http.build_request("POST", self._sign_in.url, json=HELLO)
            response = await http.send(request, stream=True)
            await response.aclose()
            if response.status_code in (401, 403):
                raise Conflict("The server refuses the token that it was given")

    async def _show(self, address: str) -> None:
        self._address = address
        self._asked.set()

    async def _wait(self) -> AuthorizationCodeResult:
        await self._answered.wait()
        return self._answer

"""A channel for programs: they POST a message to the host, and it POSTs what the agent says to their address.

In:  POST /channels/webhook/webhook with X-Webhook-Secret and {"chat": "demo", "text": "hello", "id": "1"}
Out: POST <options.url> with {"chat": "demo", "text": "..."}; any 2xx takes it, else it is tried again
"""

from __future__ import annotations

import hmac
import json
import urllib.request
import uuid
from collections.abc import Mapping, Sequence
from urllib.error import HTTPError

import anyio
import anyio.to_thread

from host.channels.base import Channel, ChannelConfig, ChannelDown, Door, Forged, Incoming, Sender, TryLater


class Webhook(Channel):
    """What the entry point names."""

    def __init__(self, config: ChannelConfig) -> None:
        self._url = str(config.options.get("url", ""))
        self._secret = config.secrets.get("secret", "")
        if not self._url.startswith(("http://", "https://")) or not self._secret:
            raise ChannelDown(f"channels.plugins.{config.name} needs options.url and secrets.secret")

    async def receive(self, door: Door) -> None:
        """Nothing to fetch: messages come by POST."""
        door.connected()
        await anyio.sleep_forever()

    async def webhook(self, headers: Mapping[str, str]) -> None:
        """Check the secret, before the body is read."""
        if not hmac.compare_digest(headers.get("x-webhook-secret", "").encode(), self._secret.encode()):
            raise Forged("wrong X-Webhook-Secret")

    async def called(self, body: bytes) -> Sequence[Incoming]:
        """Read one message. The same id again is the same message; without one each call is a new message."""
        said = json.loads(body)
        chat, text = said.get("chat"), said.get("text")
        if not isinstance(chat, str) or not isinstance(text, str):
            raise ValueError("chat and text must be text")
        return [Incoming(f"{chat}/{said.get('id') or uuid.uuid4()}", chat, Sender(chat), text)]

    async def send(self, chat_id: str, text: str, reply_to: str | None) -> str:
        """Deliver one message. Order, retries and splitting are done by whoever calls."""
        body = json.dumps({"chat": chat_id, "text": text}).encode()
        await anyio.to_thread.run_sync(self._post, body)
        return ""

    def _post(self, body: bytes) -> None:
        request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"})
        try:
            urllib.request.urlopen(request, timeout=30).close()
        except HTTPError as error:
            raise TryLater(f"the receiver answered {error.code}") from error
        except OSError as error:
            raise TryLater(f"the receiver can't be reached ({type(error).__name__})") from error

"""POST /channels/{name}/webhook: where a messenger calls, known by its own secret instead of a token."""

from collections.abc import Callable, Set
from typing import Final

from starlette.requests import ClientDisconnect, Request

from host.channels.base import Channel, Door, Forged
from host.http.auth import failure
from host.http.routing import Api, operation
from host.runs.admission import RateLimit
from shared.errors import InvalidInput, NotFound, Unavailable
from shared.settings import Settings
from shared.settings.access import Telegram
from shared.shapes import Shape

RETRY_AFTER_S: Final = 5

Running = Callable[[str], tuple[Channel, Door] | None]
"""Returns a channel that was loaded, and its door."""


class TakenShape(Shape):
    """What a webhook brought is stored."""


class ChannelsApi(Api):
    """The route of webhooks."""

    def __init__(self, settings: Settings, running: Running | None) -> None:
        self._paths = frozenset(
            f"/channels/{name}/webhook"
            for name, channel in settings.channels.by_name().items()
            if channel.enabled and not (isinstance(channel, Telegram) and channel.webhook_url is None)
        )
        self._running = running
        self._failures = RateLimit(settings.rate_limits.failed_auth_per_minute)

    def open_paths(self) -> Set[str]:
        """Return the paths at which an enabled channel itself checks who calls."""
        return self._paths

    @operation("POST", "/channels/{name}/webhook", errors=(413, 503), open=True)
    async def webhook(self, request: Request) -> TakenShape:
        """Where a messenger calls; the channel's own secret is checked instead of a token.

        200 means that what it brings is on the volume.
        """
        if request.scope["path"] not in self._paths:
            raise NotFound("There is nothing at this path.")
        running = self._running and self._running(request.path_params["name"])
        if running is None:
            raise Unavailable("The channel is starting.", retry_after=RETRY_AFTER_S)
        channel, door = running
        await self._check(channel, request)
        try:
            messages = await channel.called(await request.body())
        except ClientDisconnect:
            # Nobody reads the answer; the log shows what it was, without a trace.
            raise InvalidInput("body: ended before it was whole") from None
        except ValueError as error:
            raise InvalidInput("body: makes no sense to the channel") from error
        await door.take(*messages)
        return {}

    async def _check(self, channel: Channel, request: Request) -> None:
        """Check who calls, before the body is read. Who knows the secret is never turned away."""
        address = request.client.host if request.client else ""
        try:
            await channel.webhook(request.headers)
        except Forged:
            raise failure(self._failures, address) from None

"""Where messengers call: known before the channels are loaded."""

from __future__ import annotations

from shared.settings.channels import Channels, Telegram


def webhook_paths(channels: Channels) -> frozenset[str]:
    """Return the paths at which an enabled channel itself checks who calls."""
    return frozenset(
        f"/channels/{name}/webhook"
        for name, channel in channels.by_name().items()
        if channel.enabled and not (isinstance(channel, Telegram) and channel.webhook_url is None)
    )

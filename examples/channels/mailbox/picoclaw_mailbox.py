"""A channel whose messenger is a directory: ``in/<chat>/<name>.txt`` comes in, ``out/<chat>.txt`` goes out.

mkdir -p box/in/ann && echo 'hello' > box/in/ann/1.txt && cat box/out/ann.txt
"""

from __future__ import annotations

from pathlib import Path

import anyio

from host.channels.base import Channel, ChannelConfig, ChannelDown, Door, Incoming, Sender, TryLater


class Mailbox(Channel):
    """What the entry point names: a class (or function) that is called with the channel's settings."""

    longest = 2000

    def __init__(self, config: ChannelConfig) -> None:
        if "directory" not in config.options:
            raise ChannelDown(f"channels.plugins.{config.name}.options.directory is not set")
        self._box = Path(str(config.options["directory"]))
        self._every_s = float(config.options.get("every_s", 1))

    async def receive(self, door: Door) -> None:
        """Bring messages for ever. Whatever is raised here is logged, and this is called again."""
        inbox = self._box / "in"
        inbox.mkdir(parents=True, exist_ok=True)
        door.connected()
        while True:
            for letter in sorted(inbox.glob("*/*.txt")):
                # After take the message is safe, so only now may it be confirmed. A crash in between
                # brings it once more, under the same update_id, and it is not taken twice.
                await door.take(self._read(letter))
                letter.unlink()
            await anyio.sleep(self._every_s)

    def _read(self, letter: Path) -> Incoming:
        chat = letter.parent.name
        written = letter.stat().st_mtime_ns
        return Incoming(
            update_id=f"{chat}/{letter.name}/{written}",
            chat_id=chat,
            sender=Sender(id=chat),
            text=letter.read_text(errors="replace"),
            sent_at=written // 1_000_000,
        )

    async def send(self, chat_id: str, text: str, reply_to: str | None) -> str:
        """Deliver one message. Order, retries and splitting are done by whoever calls."""
        out = self._box / "out" / f"{chat_id}.txt"
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            with out.open("a") as file:
                file.write(f"{text}\n---\n")
        except OSError as error:
            raise TryLater(f"{out.name} cannot be written ({type(error).__name__})") from error
        return str(out.stat().st_size)

"""Tells webhooks what happened: each delivery is claimed, tried until it arrived, and never holds up a run.

A delivery was written with what it tells (``shared.store.sql.outbox``), so none is lost; one whose host died
between the try and its mark is tried again, with the same id. Signatures are those of Standard Webhooks
(standardwebhooks.com).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import secrets
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import anyio

from host.runs.meter import Ledger
from host.runs.webhook_events import body_of
from shared.children import Child
from shared.clock import now_ms
from shared.errors import InvalidInput
from shared.logging import Rounds
from shared.principals import stored_name
from shared.secrets import Seal
from shared.settings import Settings
from shared.webhook_values import TEST, TRIED_FOR_MS, Disabled, Tried, Webhook, WebhookDelivery

if TYPE_CHECKING:
    from host.egress.receivers import Answer, Request, Telling

logger = logging.getLogger("picoclaw.webhooks")

PREFIX: Final = "whsec_"
SECRET_BYTES: Final = range(24, 65)
SEALED, CLEAR = b"s", b"c"

STUCK_S: Final = 25.0
"""Without an answer for so long the process counts as stuck: a start and a try's ten seconds take less, and
a delivery's lease is longer."""
END_S: Final = 10.0
"""So long tries in flight have at a stop."""
LOOK_EVERY_S: Final = 0.5
ELSEWHERE_EVERY_S: Final = 10.0
"""How often a host without webhooks looks whether another one has got some."""
SWEEP_EVERY_S: Final = 60.0
ROUND_S: Final = 0.1
"""Until the next round where more is due: by then there is more to be told together."""
AT_ONCE: Final = 16
"""Tries of a host."""
FAILING_AT_ONCE: Final = AT_ONCE // 2
"""Of them, those of webhooks whose last try failed: they leave room for those that work."""
PAUSES_S: Final = (5, 30, 120, 600, 1800, 3600, 3 * 3600, 6 * 3600, 12 * 3600)
"""After the first, second, … failure; then always the last."""
LONGEST_ASKED_MS: Final = 3600 * 1000
"""So long a receiver's Retry-After is obeyed."""
TRIED_AGAIN: Final = frozenset({408, 425, 429})
GONE: Final = 410
TRIES_OF_REFUSED: Final = 3
WRONG_KEY: Final = "its secret can't be opened: SEAL_KEY is not the one it was sealed with"
CLEAR_SECRETS: Final = "SEAL_KEY is not set: the secrets of webhooks are stored in the clear"
FAILING: Final = (
    "The webhook {} to {} has not worked for 3 days ({}) and is disabled. "
    'PATCH /webhooks/{} {{"enabled": true}} switches it on again.'
)
TOO_MANY: Final = (
    "More than 10000 deliveries wait for webhooks; the oldest are given up. GET /webhooks says which fail."
)


class SecretBox:
    """Makes secrets of webhooks, and keeps them: sealed where there is a SEAL_KEY."""

    def __init__(self, settings: Settings) -> None:
        self._seal = Seal(settings.seal_key, b"picoclaw webhooks")

    @property
    def sealing(self) -> bool:
        """Whether secrets are kept encrypted."""
        return self._seal.usable

    def kept(self, webhook_id: str, text: str) -> bytes:
        """Return what is stored of a secret; raises InvalidInput for what is none."""
        key = _key(text)
        if key is None:
            raise InvalidInput(f"secret: must be {PREFIX} and 24 to 64 bytes in Base64, or left out")
        return SEALED + self._seal.close(key, webhook_id.encode()) if self.sealing else CLEAR + key

    def opened(self, webhook_id: str, kept: bytes) -> bytes | None:
        """Return the key of a stored secret; None where SEAL_KEY is another one."""
        return kept[1:] if kept[:1] == CLEAR else self._seal.open(kept[1:], webhook_id.encode())


def new_secret() -> str:
    """Return a secret as it is shown, once."""
    return PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def _key(text: str) -> bytes | None:
    try:
        key = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except (ValueError, binascii.Error):
        return None
    return key if text.startswith(PREFIX) and len(key) in SECRET_BYTES else None


def signed(delivery_id: str, seconds: int, body: bytes, keys: list[bytes]) -> dict[str, str]:
    """Return the headers of a delivery."""
    said = f"{delivery_id}.{seconds}.".encode() + body
    made = [base64.b64encode(hmac.digest(key, said, hashlib.sha256)).decode() for key in keys]
    return {
        "Content-Type": "application/json",
        "webhook-id": delivery_id,
        "webhook-timestamp": str(seconds),
        "webhook-signature": " ".join(f"v1,{each}" for each in made),
    }


def judged(delivery: WebhookDelivery, webhook: Webhook, answer: Answer, now: int) -> Tried:
    """Return what an answer means for a delivery and for its webhook."""
    status = answer.status or 0
    if 200 <= status < 300:
        return Tried()
    pause = PAUSES_S[min(delivery.attempts, len(PAUSES_S)) - 1] * 1000
    again_at: int | None = now + max(pause, min(answer.retry_after_ms, LONGEST_ASKED_MS))
    refused = bool(status) and status < 500 and status not in TRIED_AGAIN
    if delivery.type == TEST:
        return Tried(answer.error)
    if refused and status != GONE and delivery.attempts >= TRIES_OF_REFUSED:
        again_at = None
    last_at = delivery.began_at + TRIED_FOR_MS
    if again_at is not None and again_at > last_at:
        again_at = last_at if now < last_at else None
    return Tried(answer.error, again_at, _disabled(webhook, status, now))


def _disabled(webhook: Webhook, status: int, now: int) -> Disabled | None:
    if status == GONE:
        return "gone"
    failing = webhook.failing_since is not None and now - webhook.failing_since >= TRIED_FOR_MS
    return "failing" if failing else None


class Trying(NamedTuple):
    """A try in flight, and when it began."""

    delivery: WebhookDelivery
    webhook: Webhook
    since: float


class WebhookSender:
    """Makes the deliveries of a store, beside other hosts."""

    def __init__(self, ledger: Ledger, settings: Settings, owner: str) -> None:
        self.secrets = SecretBox(settings)
        self._ledger = ledger
        self._store = ledger.store
        self._settings = settings
        self._owner = owner
        self._alone = not ledger.store.several_hosts
        self._woken = anyio.Event()
        self._answered = anyio.Event()
        self._any = False
        self._trying: dict[int, Trying] = {}
        self._ended: list[tuple[WebhookDelivery, Tried]] = []
        self._swept = -SWEEP_EVERY_S
        self._rounds = Rounds(logger, "Webhooks could not be told")
        self._receivers: Child[Telling] | None = None

    def wake(self) -> None:
        """Look for deliveries now: there may be some."""
        self._woken.set()

    def added(self) -> None:
        """Note that there is a webhook, maybe the first."""
        if not self._any:
            self._woken.set()

    async def run(self) -> None:
        """Make deliveries until cancelled; tries in flight then have their ten seconds to end."""
        try:
            await self._until_there_are_some()
            while True:
                with anyio.move_on_after(await self._round()):
                    await self._woken.wait()
                self._woken = anyio.Event()
        finally:
            with anyio.CancelScope(shield=True):
                await self._end()

    async def _end(self) -> None:
        with anyio.move_on_after(END_S):
            while self._trying:
                self._answered = anyio.Event()
                await self._answered.wait()
        try:
            await self._claim(0)
        except Exception:
            logger.exception("How webhooks were told could not be stored")
        if self._receivers is not None:
            if self._trying:
                self._receivers.kill()
            await self._receivers.aclose()

    async def _until_there_are_some(self) -> None:
        """Wait for the first webhook, which this host or another one gets."""
        while not await self._some():
            with anyio.move_on_after(None if self._alone else ELSEWHERE_EVERY_S):
                await self._woken.wait()
            self._woken = anyio.Event()
        self._any = True
        if not self.secrets.sealing:
            logger.warning(CLEAR_SECRETS)

    async def _some(self) -> bool:
        with self._rounds:
            return await self._store.webhooks.any()
        return False

    async def _round(self) -> float:
        """Note tries that ended, begin such that are due; returns when to look again, in seconds.

        Where that fails leases end, and what was claimed is tried again.
        """
        self._end_if_stuck()
        room = AT_ONCE - len(self._trying)
        with self._rounds:
            await self._sweep()
            found, more = await self._claim(room)
            if found:
                link = await self._client().link()
                link.post([request for each in found if (request := self._request(*each)) is not None])
            return ROUND_S if more and room else LOOK_EVERY_S
        return LOOK_EVERY_S

    async def _claim(self, room: int) -> tuple[list[tuple[WebhookDelivery, Webhook]], bool]:
        """Note tries that ended, and take some that are due."""
        trying = [each.webhook for each in self._trying.values()]
        failing = FAILING_AT_ONCE - sum(each.failing_since is not None for each in trying)
        ended, self._ended = self._ended, []
        claimed = await self._store.webhooks.claim(
            self._owner, room, now_ms(), alone=self._alone, failing=failing, tries=ended
        )
        await self._count(ended)
        return claimed

    async def _count(self, ended: list[tuple[WebhookDelivery, Tried]]) -> None:
        for delivery, tried in ended:
            outcome = "delivered" if tried.error is None else "dead" if tried.again_at is None else "put_off"
            self._ledger.counts.webhook_deliveries[outcome] += 1
            if tried.disable == "failing":
                await self._tell_failing(delivery.webhook_id, tried.error)

    def _request(self, delivery: WebhookDelivery, webhook: Webhook) -> Request | None:
        now = now_ms()
        kept = [webhook.secret]
        if webhook.old_secret is not None and now < (webhook.old_secret_until or 0):
            kept.append(webhook.old_secret)
        keys = [self.secrets.opened(webhook.id, each) for each in kept]
        if keys[0] is None:
            again_at = None if delivery.type == TEST else now
            self._ended.append((delivery, Tried(WRONG_KEY, again_at, "seal_key")))
            return None
        try:
            body = body_of(delivery, self._ledger.redactor, content=webhook.content)
        except Exception:  # the others are told all the same
            logger.exception("A webhook could not be told", extra={"delivery": delivery.id})
            return None
        # Names that a principal chose are told as it says them.
        body = body.replace(stored_name(webhook.principal_id, "").encode(), b"")
        headers = signed(delivery.id, now // 1000, body, [key for key in keys if key is not None])
        self._trying[delivery.number] = Trying(delivery, webhook, anyio.current_time())
        return delivery.number, webhook.url, headers, body

    def _heard(self, number: int, answer: Answer) -> None:
        if (tried := self._trying.pop(number, None)) is not None:
            said = judged(tried.delivery, tried.webhook, answer, now_ms())
            self._ended.append((tried.delivery, said))
            self._answered.set()

    def _lost(self) -> None:
        """Forget tries of which nobody knows what came: they are made again when their leases end."""
        self._trying.clear()
        self._answered.set()

    def _end_if_stuck(self) -> None:
        oldest = next(iter(self._trying.values()), None)
        if self._receivers and oldest and anyio.current_time() - oldest.since > STUCK_S:
            logger.error("The process that tells webhooks doesn't answer; it is ended")
            self._receivers.kill()

    def _client(self) -> Child[Telling]:
        if self._receivers is None:
            from host.egress.receivers import Telling

            make, allowed = partial(Telling, self._heard, self._lost), allowed_hosts(self._settings)
            self._receivers = Child("host.egress.receivers", make, self._settings.version, *allowed)
        return self._receivers

    async def _sweep(self) -> None:
        now = anyio.current_time()
        if now - self._swept < SWEEP_EVERY_S:
            return
        self._swept = now
        for principal_id in await self._store.webhooks.sweep(now_ms()):
            await self._tell(principal_id, TOO_MANY)

    async def _tell_failing(self, webhook_id: str, error: str | None) -> None:
        webhook = await self._store.webhooks.get(webhook_id, None)
        place = webhook.url.split("/")[2]
        logger.warning("A webhook is disabled", extra={"webhook": webhook.id, "host": place})
        await self._tell(webhook.principal_id, FAILING.format(webhook.id, place, error, webhook.id))

    async def _tell(self, principal_id: str, text: str) -> None:
        """Say something to people in a principal's main conversation."""
        main = stored_name(principal_id, self._settings.main_conversation_id)
        await self._store.conversations.ensure(main, now_ms(), principal_id=principal_id)
        await self._store.outbound.add(main, main, text, "assistant", now_ms())


def allowed_hosts(settings: Settings) -> frozenset[str]:
    """Return the names that receivers may have wherever they lead."""
    return frozenset(host.lower() for host in settings.webhooks.allowed_hosts)

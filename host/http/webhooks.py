"""Webhooks over HTTP: who is told what, how telling went, and the one that a single request brings."""

from dataclasses import replace
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import Field
from starlette.requests import Request

from host.http.auth import already_made, id_for
from host.http.bodies import WHOLE, Body, Text, idempotency
from host.http.callers import caller_of
from host.http.routing import KEY, OF_PRINCIPAL, PAGE, Api, Parameter, operation, page_of
from host.runs.spec import HookShape
from host.runs.webhooks import SecretBox, WebhookSender, allowed_hosts, new_secret
from shared.clock import DAY_MS, iso, now_ms
from shared.errors import Duplicate, Forbidden, InvalidInput
from shared.ids import WEBHOOK, new_id
from shared.settings import Settings
from shared.shapes import PageShape, Shape, view
from shared.store.store import Store
from shared.webhook_values import EVENTS, EVERYBODY, TEST, Disabled, Event, Status, Webhook, WebhookDelivery

LONGEST_URL: Final = 4096
LONGEST_KEEP_MS: Final = 30 * DAY_MS

OF_URL: Final = {"format": "webhook-url", "pattern": "^[Hh][Tt][Tt][Pp][Ss]?://[!-~]+$"}
OF_SECRET: Final = {"format": "webhook-secret", "pattern": "^whsec_[A-Za-z0-9+/]{32,}=*$"}
Url = Annotated[Text, Field(max_length=LONGEST_URL, json_schema_extra=OF_URL)]
Secret = Annotated[Text, Field(max_length=200, json_schema_extra=OF_SECRET)]
Events = Annotated[list[Event], Field(min_length=1, max_length=2 * len(EVENTS))]


class RequestHook(Body):
    """The webhook of one request: it hears of its run, and of what continues that."""

    url: Url
    secret: Secret | None = None


class WebhookRequest(RequestHook):
    """POST /webhooks."""

    events: Events
    content: bool = True
    principals: Literal["*"] | None = None


class WebhookChanges(Body):
    """PATCH /webhooks/{id}: only what is given changes."""

    url: Url | None = None
    events: Events | None = None
    content: bool | None = None
    enabled: bool | None = None


class SecretRequest(Body):
    """POST /webhooks/{id}/secret."""

    secret: Secret | None = None
    keep_old_ms: Annotated[int, Field(ge=0, le=LONGEST_KEEP_MS), WHOLE] = DAY_MS


class WebhookShape(Shape):
    """A webhook; ``last_error`` null while it works."""

    id: str
    principal_id: str
    url: str
    events: list[str]
    content: bool
    principals: Literal["*"] | None
    enabled: bool
    disabled_reason: Disabled | None
    failing_since: str | None
    last_error: str | None
    created_at: str


class NewWebhookShape(WebhookShape):
    """A new webhook, with the only sight of its secret."""

    secret: str


class WebhooksShape(PageShape):
    """A page of webhooks."""

    webhooks: list[WebhookShape]


class SecretShape(Shape):
    """A new secret, shown once; the one before signs too until ``old_until``."""

    id: str
    secret: str
    old_until: str


class DeliveryShape(Shape):
    """An event on its way; ``id`` is the ``webhook-id`` that the receiver sees."""

    id: str
    type: str
    sequence: int
    principal_id: str
    conversation_id: str | None
    run_id: str | None
    status: Status
    attempts: int
    error: str | None
    created_at: str
    next_try_at: str | None
    ended_at: str | None


class DeliveriesShape(PageShape):
    """A page of deliveries."""

    deliveries: list[DeliveryShape]


class ReleasedShape(Shape):
    """How many deliveries wait no more."""

    released: int


OF_STATUS: Final = Parameter("status", "Only deliveries in this status", get_args(Status))


class Hooks:
    """Checks and makes what a request says of a webhook."""

    def __init__(self, settings: Settings, sender: WebhookSender) -> None:
        self.secrets: SecretBox = sender.secrets
        self.wake = sender.wake
        self.added = sender.added
        self._allowed = allowed_hosts(settings)

    async def check(self, url: str) -> None:
        """Raise InvalidInput for an address that no webhook may have."""
        from host.egress.receivers import check_address

        await check_address(url, self._allowed)

    async def made(
        self, said: RequestHook, principal_id: str, subject: str, **more: Any
    ) -> tuple[Webhook, str]:
        """Return a webhook and its secret; raises InvalidInput."""
        await self.check(said.url)
        secret = new_secret() if said.secret is None else said.secret
        terms: dict[str, Any] = {"id": new_id(WEBHOOK), "events": EVENTS, "content": True, **more}
        terms |= {"secret": self.secrets.kept(terms["id"], secret), "created_at": now_ms()}
        return Webhook(principal_id=principal_id, subject=subject, url=said.url, **terms), secret

    async def of_run(
        self, said: RequestHook, principal_id: str, run_id: str, *, stream: bool
    ) -> tuple[Webhook, HookShape]:
        """Return the webhook of a request, and what its answer says of it; raises InvalidInput."""
        if stream and said.secret is None:
            raise InvalidInput("webhook.secret: is required with stream, which can't show a new one")
        try:
            made, secret = await self.made(said, principal_id, run_id)
        except InvalidInput as error:
            raise InvalidInput(f"webhook.{error.message}") from None
        shown: HookShape = {"id": made.id}
        return made, shown if said.secret is not None else {**shown, "secret": secret}


class WebhooksApi(Api):
    """What there is of webhooks."""

    def __init__(self, store: Store, hooks: Hooks) -> None:
        self._store = store
        self._hooks = hooks

    @operation("POST", "/webhooks", scope="chat", status=201, parameters=[KEY], errors=(409,))
    async def create(self, request: Request, body: WebhookRequest) -> NewWebhookShape:
        """Have an address told how runs end."""
        caller = caller_of(request)
        if body.principals is not None and caller.within is not None:
            raise Forbidden("principals: what happens to others takes API_TOKEN.")
        whose = caller.principal.id
        events = tuple(dict.fromkeys(body.events))
        key = await idempotency(request)
        hook_id = await id_for(key, WEBHOOK, self._store)
        made, secret = await self._hooks.made(
            body, whose, body.principals or whose, id=hook_id, events=events, content=body.content
        )
        try:
            await self._store.webhooks.add(made)
        except Duplicate:
            raise already_made(hook_id) from None
        if key is not None:
            await self._store.runs.keep_answer(key, hook_id, 201, {}, made.created_at)
        await self._store.durable()
        self._hooks.added()
        return {**webhook_view(made), "secret": secret}

    @operation("GET", "/webhooks", scope="chat", parameters=[*PAGE, OF_PRINCIPAL])
    async def list(self, request: Request) -> WebhooksShape:
        """List webhooks, without their secrets."""
        page = await self._store.webhooks.page(caller_of(request).listed(request), **page_of(request))
        return {"webhooks": list(map(webhook_view, page.items)), "next_cursor": page.next_cursor}

    @operation("GET", "/webhooks/{id}", scope="chat")
    async def get(self, request: Request) -> WebhookShape:
        """One webhook."""
        return webhook_view(await self._found(request))

    @operation("PATCH", "/webhooks/{id}", scope="chat")
    async def change(self, request: Request, body: WebhookChanges) -> WebhookShape:
        """Change what is given; enabled, it begins anew."""
        webhook = await self._found(request)
        changes = {name: value for name, value in body.model_dump().items() if value is not None}
        for name in body.model_fields_set - changes.keys():
            raise InvalidInput(f"{name}: must not be null; leave it out to keep it")
        if body.url is not None:
            await self._hooks.check(body.url)
        if body.events is not None:
            changes["events"] = tuple(dict.fromkeys(body.events))
        if body.enabled is not None:
            reason = None if body.enabled else webhook.disabled_reason or "owner"
            changes |= {"disabled_reason": reason, "failing_since": None}
        return webhook_view(await self._changed(webhook, changes) if changes else webhook)

    @operation("DELETE", "/webhooks/{id}", scope="chat")
    async def delete(self, request: Request) -> None:
        """Remove a webhook, and what waits for it."""
        await self._store.webhooks.delete((await self._found(request)).id)
        await self._store.durable()

    @operation("POST", "/webhooks/{id}/secret", scope="chat")
    async def rotate(self, request: Request, body: SecretRequest) -> SecretShape:
        """Give it a new secret; both sign for a while."""
        webhook = await self._found(request)
        secret = new_secret() if body.secret is None else body.secret
        until = now_ms() + body.keep_old_ms
        kept = self._hooks.secrets.kept(webhook.id, secret)
        await self._changed(webhook, {"secret": kept, "old_secret_until": until})
        return {"id": webhook.id, "secret": secret, "old_until": iso(until)}

    @operation("POST", "/webhooks/{id}/test", scope="chat", status=202)
    async def test(self, request: Request) -> DeliveryShape:
        """Send it an event of type webhook.test, disabled or not; it is tried once."""
        delivery = await self._store.webhooks.test(await self._found(request), now_ms())
        return await self._told(delivery)

    @operation("GET", "/webhooks/{id}/deliveries", scope="chat", parameters=[*PAGE, OF_STATUS])
    async def deliveries(self, request: Request) -> DeliveriesShape:
        """List its deliveries, newest first."""
        webhook = await self._found(request)
        status = OF_STATUS.text(request)
        page = await self._store.webhooks.deliveries(webhook.id, status, **page_of(request))
        shown = [delivery_view(each, enabled=webhook.enabled) for each in page.items]
        return {"deliveries": shown, "next_cursor": page.next_cursor}

    @operation(
        "POST", "/webhooks/{id}/deliveries/{delivery_id}/replay", scope="chat", status=202, errors=(409,)
    )
    async def replay(self, request: Request) -> DeliveryShape:
        """Send an event once more, with the same id."""
        webhook, delivery_id = await self._found(request), request.path_params["delivery_id"]
        return await self._told(await self._store.webhooks.replay(webhook.id, delivery_id, now_ms()))

    @operation("POST", "/webhooks/release")
    async def release(self, request: Request) -> ReleasedShape:
        """Let go what waits since the store was restored or copied."""
        released = await self._store.webhooks.release(now_ms())
        await self._store.durable()
        self._hooks.wake()
        return {"released": released}

    async def _found(self, request: Request) -> Webhook:
        return await self._store.webhooks.get(request.path_params["id"], caller_of(request).within)

    async def _changed(self, webhook: Webhook, changes: dict[str, Any]) -> Webhook:
        await self._store.webhooks.change(webhook.id, **changes)
        await self._store.durable()
        self._hooks.wake()
        return replace(webhook, **changes)

    async def _told(self, delivery: WebhookDelivery) -> DeliveryShape:
        await self._store.durable()
        self._hooks.wake()
        return delivery_view(delivery)


def webhook_view(webhook: Webhook) -> WebhookShape:
    """Return a webhook as it leaves the host: without its secrets."""
    everybody = EVERYBODY if webhook.subject == EVERYBODY else None
    return view(WebhookShape, webhook, principals=everybody)


def delivery_view(delivery: WebhookDelivery, *, enabled: bool = True) -> DeliveryShape:
    """Return a delivery as it leaves the host, without what it tells; ``enabled``: its webhook is."""
    waits = delivery.status == "waiting" and (enabled or delivery.type == TEST)
    next_try = max(delivery.not_before, delivery.began_at) if waits else None
    return view(DeliveryShape, delivery, sequence=delivery.number, next_try_at=next_try)

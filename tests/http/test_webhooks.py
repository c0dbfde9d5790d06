"""Webhooks from outside: a real host, a real receiver, the published package verifies each signature."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.fakes.receiver import Answer, Receiver, receiving
from tests.http.conftest import SEALING, MakeHost, configure
from tests.http.two_principals import SETTINGS as WITH_PRINCIPALS
from tests.http.two_principals import somebody
from tests.json_schema import validator
from tests.running import HostProcess, ModelProcess, directive, new_host, until

ALLOWED = {"webhooks": {"allowed_hosts": ["127.0.0.1"]}}


@pytest.fixture(scope="module")
def hooked_host(model: ModelProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    """A host whose webhooks may be on this machine."""
    root = tmp_path_factory.mktemp("hooked_host")
    process = configure(new_host(root, model.url, {**SEALING, **WITH_PRINCIPALS}), **ALLOWED)
    process.start()
    yield process
    process.stop()


@pytest.fixture
def client(hooked_host: HostProcess) -> Iterator[httpx2.Client]:
    with hooked_host.client() as client:
        yield client
        for webhook in client.get("/webhooks?principal_id=*").json()["webhooks"]:
            client.delete(f"/webhooks/{webhook['id']}")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as one:
        yield one


def a_webhook(client: httpx2.Client, receiver: Receiver, *events: str, **more: Any) -> dict[str, Any]:
    asked = {"url": f"{receiver.url}/hook", "events": list(events or ("run.ended",)), **more}
    made = client.post("/webhooks", json=asked)
    assert made.status_code == 201, made.text
    webhook: dict[str, Any] = made.json()
    return webhook


def deliveries(client: httpx2.Client, webhook: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get(f"/webhooks/{webhook['id']}/deliveries").json()["deliveries"]
    return found


def settled(client: httpx2.Client, webhook: dict[str, Any]) -> dict[str, Any]:
    """Return the newest delivery once its first try has been noted."""
    until(lambda: any(each["error"] or each["ended_at"] for each in deliveries(client, webhook)[:1]))
    return deliveries(client, webhook)[0]


def test_the_same_key_makes_one_webhook_whose_secret_is_told_once(
    client: httpx2.Client, receiver: Receiver
) -> None:
    body = {"url": f"{receiver.url}/hook", "events": ["run.ended"]}
    key = {"Idempotency-Key": "the-hook"}
    made = client.post("/webhooks", json=body, headers=key)
    again = client.post("/webhooks", json=body, headers=key)
    assert (made.status_code, again.status_code, again.json()["code"]) == (201, 409, "already_made")
    assert made.json()["id"] in again.json()["error"]
    assert made.json()["secret"] not in again.text
    other = client.post("/webhooks", json={**body, "content": False}, headers=key)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_mismatch")
    assert [each["id"] for each in client.get("/webhooks").json()["webhooks"]] == [made.json()["id"]]


def test_the_end_of_a_run_comes_signed_with_its_answer(client: httpx2.Client, receiver: Receiver) -> None:
    webhook = a_webhook(client, receiver)
    answer = client.post("/chat", json={"message": "hello"}).json()
    (came,) = receiver.wait(1)
    event = came.verified(webhook["secret"])
    assert (came.path, event["type"]) == ("/hook", "run.ended")
    data = event["data"]
    assert data["principal_id"] == "operator"
    assert {name: data[name] for name in answer} == answer
    done = settled(client, webhook)
    assert (done["id"], done["status"], done["attempts"]) == (came.id, "delivered", 1)
    assert done["sequence"] == data["sequence"]


def test_secrets_are_shown_once_and_rotated_with_both_signing(
    client: httpx2.Client, receiver: Receiver
) -> None:
    webhook = a_webhook(client, receiver)
    listed = client.get(f"/webhooks/{webhook['id']}").json()
    assert "secret" not in listed
    assert webhook["secret"].startswith("whsec_")
    rotated = client.post(f"/webhooks/{webhook['id']}/secret", json={"keep_old_ms": 60_000}).json()
    client.post("/chat", json={"message": "hello"})
    (came,) = receiver.wait(1)
    assert len(came.headers["webhook-signature"].split(" ")) == 2
    assert came.verified(webhook["secret"]) == came.verified(rotated["secret"])
    client.post(f"/webhooks/{webhook['id']}/secret", json={"keep_old_ms": 0})
    client.post("/chat", json={"message": "hello"})
    came = receiver.wait(2)[1]
    assert " " not in came.headers["webhook-signature"]


def test_a_failed_delivery_is_tried_again_with_the_same_id(client: httpx2.Client, receiver: Receiver) -> None:
    webhook = a_webhook(client, receiver)
    receiver.answers = [Answer(500), Answer(200)]
    client.post("/chat", json={"message": "hello"})
    first, second = receiver.wait(2)
    assert first.id == second.id
    assert first.body == second.body
    until(lambda: deliveries(client, webhook)[0]["status"] == "delivered")
    assert client.get(f"/webhooks/{webhook['id']}").json()["last_error"] is None


def test_gone_disables_and_enabling_tries_what_waits(client: httpx2.Client, receiver: Receiver) -> None:
    webhook = a_webhook(client, receiver)
    receiver.answers = [Answer(410)]
    client.post("/chat", json={"message": "hello"})
    until(lambda: not client.get(f"/webhooks/{webhook['id']}").json()["enabled"])
    state = client.get(f"/webhooks/{webhook['id']}").json()
    assert (state["disabled_reason"], state["last_error"]) == ("gone", "HTTP 410")
    assert deliveries(client, webhook)[0]["next_try_at"] is None, "it waits for the webhook"
    client.post("/chat", json={"message": "not heard"})
    back = client.patch(f"/webhooks/{webhook['id']}", json={"enabled": True}).json()
    assert (back["enabled"], back["disabled_reason"]) == (True, None)
    waiting = deliveries(client, webhook)
    assert [(each["status"], each["next_try_at"] is None) for each in waiting] == [("waiting", False)]


def test_redirects_are_not_followed_and_answers_not_read_to_the_end(
    client: httpx2.Client, receiver: Receiver
) -> None:
    webhook = a_webhook(client, receiver)
    receiver.answers = [Answer(302, {"Location": f"{receiver.url}/elsewhere"})]
    client.post(f"/webhooks/{webhook['id']}/test")
    done = settled(client, webhook)
    assert (done["status"], done["error"], done["type"]) == ("dead", "HTTP 302", "webhook.test")
    assert [each.path for each in receiver.received] == ["/hook"]
    receiver.answers = [Answer(200, body=b"x" * 5_000_000)]
    client.post(f"/webhooks/{webhook['id']}/test")
    until(lambda: deliveries(client, webhook)[0]["status"] == "delivered")


def test_a_delivery_is_replayed_with_its_id(client: httpx2.Client, receiver: Receiver) -> None:
    webhook = a_webhook(client, receiver)
    client.post("/chat", json={"message": "hello"})
    done = settled(client, webhook)
    again = client.post(f"/webhooks/{webhook['id']}/deliveries/{done['id']}/replay")
    assert again.status_code == 202
    first, second = receiver.wait(2)
    assert first.id == second.id == done["id"]
    assert first.body == second.body


def test_without_content_only_ids_and_statuses_are_sent(client: httpx2.Client, receiver: Receiver) -> None:
    a_webhook(client, receiver, "run.ended", "message.created", content=False)
    client.post("/chat", json={"message": "my secret plan"})
    event = receiver.wait_for("run.ended").event
    assert event["data"]["status"] == "success"
    assert event["data"].keys() <= {
        *("principal_id", "sequence", "conversation_id", "message_id", "run_id", "root_run_id", "status"),
    }


def test_a_long_answer_is_cut_and_says_so(client: httpx2.Client, receiver: Receiver) -> None:
    a_webhook(client, receiver)
    client.post("/chat", json={"message": directive(text='"x' * 90_000)})
    came = receiver.wait(1)[0]
    assert len(came.body) <= 256 * 1024
    assert came.event["data"]["truncated"] is True
    assert came.event["data"]["result"].startswith('"x"x')


def test_a_request_brings_a_webhook_of_its_own(client: httpx2.Client, receiver: Receiver) -> None:
    hook = {"url": receiver.url}
    begun = client.post("/chat", json={"message": "hello", "background": True, "webhook": hook})
    assert begun.status_code == 202
    secret = begun.json()["webhook"]["secret"]
    came = receiver.wait(1)[0]
    assert came.verified(secret)["data"]["run_id"] == begun.json()["run_id"]
    given = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    answer = client.post("/chat", json={"message": "hello", "webhook": {**hook, "secret": given}}).json()
    assert answer["webhook"].keys() == {"id"}
    assert receiver.wait(2)[1].verified(given)["data"]["run_id"] == answer["run_id"]
    client.post("/chat", json={"message": "not heard", "conversation_id": answer["conversation_id"]})
    assert client.get("/webhooks").json()["webhooks"] == []
    stream = {"message": "hello", "stream": True, "webhook": hook}
    refused = client.post("/chat", json=stream)
    assert (refused.status_code, "secret" in refused.json()["error"]) == (400, True)
    assert len(receiver.received) == 2


BAD: list[tuple[dict[str, Any], str]] = [
    ({"url": "http://example.com/"}, "url"),
    ({"url": "ftp://127.0.0.1/"}, "url"),
    ({"url": "https://user:pass@example.com/"}, "url"),
    ({"url": "https://example.com/#part"}, "url"),
    ({"url": "https://example.com:80/"}, "url"),
    ({"url": "https://example.com:0/"}, "url"),
    ({"url": "https://example.com:99999/"}, "url"),
    ({"url": "https://localhost/"}, "url"),
    ({"url": "https://10.0.0.1/"}, "url"),
    ({"url": "https://169.254.169.254/latest"}, "url"),
    ({"url": "https://[::ffff:127.0.0.1]/"}, "url"),
    ({"url": "https://0x7f000001/"}, "url"),
    ({"url": "https://"}, "url"),
    ({"url": "example.com"}, "url"),
    ({"url": "https://exa mple.com/"}, "url"),
    ({"url": "https://example.com/" + "x" * 4096}, "url"),
    ({"url": "https://example.com/", "events": []}, "events"),
    ({"url": "https://example.com/", "events": ["run.begun"]}, "events"),
    ({"url": "https://example.com/", "secret": "hush"}, "secret"),
    ({"url": "https://example.com/", "secret": "whsec_c2hvcnQ="}, "secret"),
    ({"url": "https://example.com/", "secret": ""}, "secret"),
    ({"url": "https://example.com/", "principals": "prin-1"}, "principals"),
]


@pytest.mark.parametrize(("body", "field"), BAD, ids=lambda value: str(value)[:60])
def test_a_webhook_that_cannot_be_is_refused_with_the_field(
    client: httpx2.Client, body: dict[str, Any], field: str
) -> None:
    answer = client.post("/webhooks", json={"events": ["run.ended"], **body})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"].startswith(field)


def test_changes_are_checked_as_the_first_values_were(client: httpx2.Client, receiver: Receiver) -> None:
    path = f"/webhooks/{a_webhook(client, receiver)['id']}"
    before = client.get(path).json()
    assert client.patch(path, json={}).json() == before
    bad: list[dict[str, Any]] = [{"url": "https://10.0.0.1/"}, {"url": None}, {"events": []}, {"enabled": 1}]
    for change in bad:
        refused = client.patch(path, json=change)
        assert refused.status_code == 400, refused.text
        assert refused.json()["error"].startswith(next(iter(change)))
    assert client.get(path).json() == before
    off = client.patch(path, json={"enabled": False, "events": ["task.ended", "task.ended"]}).json()
    assert (off["disabled_reason"], off["events"]) == ("owner", ["task.ended"])


def test_a_bad_webhook_of_a_request_leaves_no_trace(client: httpx2.Client) -> None:
    before = client.get("/runs?limit=1").json()["runs"]
    for field, wrong in (("url", "https://10.0.0.1/"), ("secret", "short")):
        hook = {"url": "https://example.com/", field: wrong}
        answer = client.post("/chat", json={"message": "x", "webhook": hook})
        assert (answer.status_code, answer.json()["error"].split(":")[0]) == (400, f"webhook.{field}")
    assert client.get("/runs?limit=1").json()["runs"] == before


def test_principals_have_webhooks_of_their_own(
    hooked_host: HostProcess, client: httpx2.Client, receiver: Receiver
) -> None:
    everything = a_webhook(client, receiver, "run.ended", principals="*")
    own = a_webhook(client, receiver, "run.ended")
    with somebody(hooked_host, "ann") as ann, somebody(hooked_host, "bob") as bob:
        hers = a_webhook(ann.client, receiver, "run.ended")
        said = ann.chat("hello", conversation_id="main")
        told = {each.event["data"]["conversation_id"] for each in receiver.wait(2)}
        assert told == {"main", f"{ann.id}+main"}
        for webhook in (everything, own):
            assert ann.client.get(f"/webhooks/{webhook['id']}").status_code == 404
        for path in ("", "/deliveries"):
            assert bob.client.get(f"/webhooks/{hers['id']}{path}").status_code == 404
        assert bob.client.delete(f"/webhooks/{hers['id']}").status_code == 404
        refused = ann.client.post(
            "/webhooks", json={"url": receiver.url, "events": ["run.ended"], "principals": "*"}
        )
        assert refused.status_code == 403
        assert ann.client.post("/webhooks/release").status_code == 403
        assert [each["run_id"] for each in deliveries(client, everything)] == [said["run_id"]]
        assert deliveries(client, own) == []
        listed = client.get("/webhooks?principal_id=*").json()["webhooks"]
        assert {each["id"] for each in listed} == {everything["id"], own["id"], hers["id"]}


def test_a_receiver_that_hangs_holds_up_neither_runs_nor_other_receivers(
    client: httpx2.Client, receiver: Receiver
) -> None:
    hold = threading.Event()
    with receiving() as hung:
        hung.answers = [Answer(hold=hold) for _ in range(10)]
        a_webhook(client, hung)
        a_webhook(client, receiver)
        for number in range(3):
            client.post("/chat", json={"message": f"hello {number}"})
        receiver.wait(3)
        hold.set()


def test_how_a_slow_receiver_was_told_is_noted_although_others_were_told_meanwhile(
    client: httpx2.Client, receiver: Receiver
) -> None:
    hold = threading.Event()
    with receiving() as slow:
        slow.answers = [Answer(hold=hold)]
        late, soon = a_webhook(client, slow), a_webhook(client, receiver)
        for _ in range(2):
            client.post("/chat", json={"message": "hello"})
        until(lambda: [each["status"] for each in deliveries(client, soon)] == ["delivered"] * 2)
        hold.set()
        until(lambda: deliveries(client, late)[-1]["status"] == "delivered")
        assert deliveries(client, late)[-1]["attempts"] == 1


def test_secrets_are_sealed_at_rest_and_a_wrong_key_disables(make_host: MakeHost, receiver: Receiver) -> None:
    host = configure(make_host(settings=SEALING), **ALLOWED).start()
    with host.client() as client:
        webhook = a_webhook(client, receiver, secret="whsec_" + "QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFB")
    host.kill()
    database = b"".join(path.read_bytes() for path in host.root.rglob("*.db*") if path.is_file())
    assert b"A" * 24 not in database
    host.environment["SEAL_KEY"] = "x" * 43
    host.start()
    with host.client() as client:
        client.post("/chat", json={"message": "hello"})
        until(lambda: not client.get(f"/webhooks/{webhook['id']}").json()["enabled"])
        assert client.get(f"/webhooks/{webhook['id']}").json()["disabled_reason"] == "seal_key"
        client.post(f"/webhooks/{webhook['id']}/test")
        until(lambda: deliveries(client, webhook)[0]["status"] == "dead")
        assert (deliveries(client, webhook)[0]["attempts"], receiver.received) == (1, [])
        newer = client.post(f"/webhooks/{webhook['id']}/secret", json={}).json()["secret"]
        client.patch(f"/webhooks/{webhook['id']}", json={"enabled": True})
        assert receiver.wait(1)[0].verified(newer)["type"] == "run.ended"


def test_a_killed_host_tells_what_ended_before(make_host: MakeHost, receiver: Receiver) -> None:
    host = configure(make_host(settings=SEALING), **ALLOWED).start()
    hold = threading.Event()
    receiver.answers = [Answer(hold=hold)]
    with host.client() as client:
        webhook = a_webhook(client, receiver)
        run_id = client.post("/chat", json={"message": "hello"}).json()["run_id"]
        (before,) = receiver.wait(1)
    host.kill()
    hold.set()
    host.start()
    after = receiver.wait(2)[1]
    assert after.id == before.id
    assert after.verified(webhook["secret"])["data"]["run_id"] == run_id


def test_events_are_what_the_document_says(client: httpx2.Client, receiver: Receiver) -> None:
    a_webhook(client, receiver, "run.ended", "run.paused", "approval.requested", "message.created")
    document = client.get("/openapi.json").json()
    ask = [{"tool": "exec", "do": "ask"}]
    client.post(
        "/chat",
        json={"message": directive(tools=[{"name": "exec", "input": {"command": "ls"}}]), "permissions": ask},
    )
    client.post("/chat", json={"message": "hello"})
    for kind in ("run.paused", "approval.requested", "message.created", "run.ended"):
        event = receiver.wait_for(kind).event
        content = document["webhooks"][kind]["post"]["requestBody"]["content"]["application/json"]
        schema = {**content["schema"], "components": document["components"]}
        validator(schema).validate(json.loads(json.dumps(event)))

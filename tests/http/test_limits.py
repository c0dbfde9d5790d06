"""Rate limits, and what happens when every place for a run is taken."""

from __future__ import annotations

import threading
import time
from typing import Any

import httpx2

from tests.http.conftest import MakeHost, configure
from tests.running import HostProcess, ModelProcess, directive, frames

HANG = {"message": directive(text="a", hang_after_deltas=1), "stream": True}
LONG_QUEUE = "300000"


class Holder:
    """Takes a place by a run that goes on until it is released."""

    def __init__(self, host: HostProcess) -> None:
        self._client = host.client()
        self._stream = self._client.stream("POST", "/chat", json=HANG)
        self._events = frames(self._stream.__enter__().iter_lines())
        self.conversation = str(next(self._events)[2]["conversation_id"])

    def release(self) -> None:
        """Cancel the run and return when it has ended."""
        assert self._client.post(f"/chat/{self.conversation}/cancel").status_code == 202
        assert list(self._events)[-1][1] == "done"
        self._stream.__exit__(None, None, None)
        self._client.close()


class Asking(threading.Thread):
    """A request of its own that may have to wait."""

    def __init__(self, host: HostProcess, **body: Any) -> None:
        super().__init__()
        self._host, self._body = host, body
        self.status = 0
        self.answer: dict[str, Any] = {}
        self.start()

    def run(self) -> None:
        with self._host.client() as client:
            answer = client.post("/chat", json=self._body)
            self.status, self.answer = answer.status_code, answer.json()


def test_a_token_may_ask_so_often_in_a_minute(make_host: MakeHost) -> None:
    # The look at /ready costs nothing: it is open to everyone.
    host = configure(make_host(), rate_limits={"requests_per_minute": 3}).start()
    with host.client() as client:
        assert [client.get("/chat").status_code for _ in range(3)] == [200, 200, 200]
        refused = client.get("/chat")
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert 0 < int(refused.headers["retry-after"]) <= 60
        assert client.get("/health").status_code == 200


def test_a_principal_may_ask_so_often_in_a_minute_whichever_its_tokens(make_host: MakeHost) -> None:
    host = configure(make_host(), principals={"isolation": "weak"}).start()
    with host.client() as client:
        limits = {"name": "Ann", "rate_limits": {"requests_per_minute": 2}}
        ann = client.post("/principals", json=limits).json()["id"]
        tokens = [client.post(f"/principals/{ann}/tokens", json={}).json()["token"] for _ in range(3)]
    answers = []
    for token in tokens:
        with host.client(token) as client:
            answers.append(client.get("/me"))
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[-1].json()["error"] == "This principal's requests_per_minute are 2."
    with host.client() as client:
        assert client.get("/me").status_code == 200


def test_more_tokens_are_no_more_requests_for_a_principal_and_are_for_the_operator(
    make_host: MakeHost,
) -> None:
    host = configure(
        make_host(), principals={"isolation": "weak"}, rate_limits={"requests_per_minute": 4}
    ).start()
    with host.client() as operator:
        ann = operator.post("/principals", json={"name": "Ann"}).json()["id"]
        tokens = [
            operator.post(f"/principals/{whose}/tokens", json={}).json()["token"]
            for whose in (ann, "operator")
        ]
    with host.client(tokens[0]) as client:
        made = [client.post("/me/tokens", json={}).json()["token"] for _ in range(3)]
        assert client.get("/me").status_code == 200
    for text, status in ((made[0], 429), (tokens[1], 200)):
        with host.client(text) as client:
            assert client.get("/me").status_code == status


def test_a_sender_may_say_so_much_in_a_minute_and_others_are_not_concerned(make_host: MakeHost) -> None:
    host = configure(make_host(), rate_limits={"messages_per_minute": 2}).start()
    with host.client() as client:
        said = [client.post("/chat", json={"message": "hi", "sender": "ann"}) for _ in range(3)]
        assert [answer.status_code for answer in said] == [200, 200, 429]
        assert int(said[-1].headers["retry-after"]) > 0
        assert client.post("/chat", json={"message": "hi", "sender": "bob"}).status_code == 200
        assert len(client.get("/chat").json()["conversations"]) == 4


def test_failed_authentications_are_limited_as_the_settings_say(make_host: MakeHost) -> None:
    host = configure(make_host(), rate_limits={"failed_auth_per_minute": 2}).start()
    with host.client("wrong") as client:
        assert [client.get("/chat").status_code for _ in range(4)] == [401, 401, 429, 429]


def test_without_a_queue_a_run_too_many_is_refused_at_once_and_leaves_no_trace(make_host: MakeHost) -> None:
    host = make_host(settings={"MAX_CONCURRENT_RUNS": "1"}).start()
    holder = Holder(host)
    with host.client() as client:
        before = client.get("/chat").json()
        refused = client.post("/chat", json={"message": "hi"})
        assert (refused.status_code, refused.json()["code"]) == (503, "at_capacity")
        assert refused.headers["retry-after"] == "1"
        assert client.get("/chat").json() == before
        holder.release()
        assert client.post("/chat", json={"message": "hi"}).status_code == 200


def test_a_queue_that_lasts_too_long_ends_in_a_refusal(make_host: MakeHost) -> None:
    host = make_host(settings={"MAX_CONCURRENT_RUNS": "1", "QUEUE_MS": "200"}).start()
    holder = Holder(host)
    with host.client() as client:
        refused = client.post("/chat", json={"message": "hi"})
        assert (refused.status_code, refused.json()["code"]) == (503, "at_capacity")
    holder.release()


def test_what_would_be_refused_anyway_does_not_wait(make_host: MakeHost) -> None:
    host = make_host(settings={"MAX_CONCURRENT_RUNS": "1", "QUEUE_MS": LONG_QUEUE}).start()
    holder = Holder(host)
    with host.client() as client:
        busy = client.post(
            "/chat", json={"message": "hi", "conversation_id": holder.conversation}, timeout=60
        )
        assert busy.status_code == 409
        unknown = client.post("/chat", json={"message": "hi", "conversation_id": "conv-none"}, timeout=60)
        assert unknown.status_code == 404
    holder.release()


def test_places_are_given_in_turn_to_those_who_wait(make_host: MakeHost, model: ModelProcess) -> None:
    host = make_host(settings={"MAX_CONCURRENT_RUNS": "1", "QUEUE_MS": LONG_QUEUE}).start()
    holder = Holder(host)
    asking = []
    with host.client() as client:
        for number, sender in enumerate(["ann", "ann", "bob"]):
            asking.append(Asking(host, message=f"turn-{number}", sender=sender))
            waiting_for(client, number + 1)
    holder.release()
    for thread in asking:
        thread.join(60)
    assert [thread.status for thread in asking] == [200, 200, 200]
    texts = [str(request["body"]["messages"]) for request in model.requests()]
    order = [text[text.index("turn-") + 5] for text in texts if "turn-" in text]
    assert order == ["0", "2", "1"]


def test_a_task_does_not_wait_for_a_place_and_stays_due(make_host: MakeHost) -> None:
    host = make_host(settings={"MAX_CONCURRENT_RUNS": "1", "QUEUE_MS": LONG_QUEUE}).start()
    holder = Holder(host)
    task = {"prompt": "go", "schedule_type": "once", "schedule_value": "2020-01-01", "run_if_past": True}
    with host.client() as client:
        client.post("/task", json=task)
        assert client.post("/task/check", timeout=60).status_code == 503
        holder.release()
        assert client.post("/task/check").json()["executed"]["status"] == "success"


def waiting_for(client: httpx2.Client, number: int) -> None:
    """Return when so many requests wait in the queue."""
    deadline = time.monotonic() + 60
    while f"picoclaw_waiting_runs {number}.0" not in client.get("/metrics").text:
        assert time.monotonic() < deadline

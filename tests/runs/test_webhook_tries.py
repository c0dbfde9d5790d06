"""What a receiver's answer means: whether and when a delivery is tried again, when a webhook is given up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from host.egress.receivers import Answer
from host.runs.webhooks import PAUSES_S, TRIES_OF_REFUSED, judged
from shared.webhook_values import TEST, TRIED_FOR_MS, Tried, Webhook, WebhookDelivery

NOW = 1_800_000_000_000
WEBHOOK = Webhook("whk_1", "a", "a", "https://example.com", ("run.finished",), False, b"", NOW)
DELIVERY = WebhookDelivery(
    1,
    "evt_1",
    "whk_1",
    "a",
    None,
    None,
    "run.finished",
    "{}",
    NOW,
    NOW,
    "waiting",
    1,
    NOW,
    "here",
    None,
    None,
)
FAILED = Answer(status=503, error="503")


def after(status: int, attempts: int, type_: str = "run.finished") -> Tried:
    delivery = replace(DELIVERY, attempts=attempts, type=type_)
    return judged(delivery, WEBHOOK, Answer(status=status, error=str(status)), NOW)


@pytest.mark.parametrize("status", [200, 204, 299])
def test_an_answer_of_two_hundred_is_arrival(status: int) -> None:
    assert after(status, 1) == Tried()


@pytest.mark.parametrize("status", [0, 408, 429, 500, 503])
def test_what_may_pass_is_tried_again_with_longer_pauses(status: int) -> None:
    tries = [after(status, attempts).again_at for attempts in (1, 2, 100)]
    assert tries == [NOW + pause * 1000 for pause in (PAUSES_S[0], PAUSES_S[1], PAUSES_S[-1])]


@pytest.mark.parametrize("status", [300, 400, 404, 499])
def test_what_a_receiver_refuses_is_tried_three_times_and_no_more(status: int) -> None:
    assert after(status, TRIES_OF_REFUSED - 1).again_at is not None
    assert after(status, TRIES_OF_REFUSED).again_at is None


@pytest.mark.parametrize("status", [410, 503])
def test_a_test_is_tried_once_and_disables_nothing(status: int) -> None:
    failing = replace(WEBHOOK, failing_since=NOW - TRIED_FOR_MS)
    answer = Answer(status=status, error=str(status))

    assert judged(replace(DELIVERY, type=TEST), failing, answer, NOW) == Tried(str(status))


def test_the_last_try_is_three_days_after_the_first_and_there_is_none_later() -> None:
    last = DELIVERY.began_at + TRIED_FOR_MS
    old = replace(DELIVERY, attempts=20)
    assert judged(old, WEBHOOK, FAILED, last - 1).again_at == last
    assert judged(old, WEBHOOK, FAILED, last).again_at is None
    assert judged(old, WEBHOOK, FAILED, last + 1).again_at is None


def test_a_webhook_is_disabled_when_it_is_gone_or_has_failed_for_three_days() -> None:
    assert after(410, 1).disable == "gone"
    failing = replace(WEBHOOK, failing_since=NOW - TRIED_FOR_MS)
    assert judged(DELIVERY, failing, FAILED, NOW).disable == "failing"
    assert judged(DELIVERY, failing, FAILED, NOW - 1).disable is None
    assert judged(DELIVERY, WEBHOOK, FAILED, NOW).disable is None

"""Ids: of the form that the API promises, in the order they were made, but for those people tell apart."""

from __future__ import annotations

from uuid import UUID

from shared.clock import now_ms
from shared.ids import CONVERSATION, MESSAGE, RUN, new_id


def test_every_id_is_its_kind_and_a_uuid_of_version_4() -> None:
    for kind in (CONVERSATION, MESSAGE, RUN):
        made = new_id(kind)
        assert made == f"{kind}-{UUID(made.removeprefix(f'{kind}-'))}"
        assert UUID(made.removeprefix(f"{kind}-")).version == 4


def test_an_id_begins_with_the_moment_it_was_made() -> None:
    before, made, after = now_ms(), new_id(RUN), now_ms()
    assert before <= UUID(made.removeprefix("run-")).int >> 80 <= after


def test_the_first_digits_of_conversations_tell_them_apart() -> None:
    assert len({new_id(CONVERSATION)[: len("conv-") + 8] for _ in range(100)}) == 100

"""Chats that are mapped to principals: whose conversations they have, and who is turned away."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from pydantic import ValidationError

from host.channels.base import Sender
from host.channels.rules import Rules
from shared.settings.channels import ChannelRules

ANN, BOB, NOBODY = (f"prin-{UUID(int=number)}" for number in range(3))


@pytest.mark.parametrize(
    ("chat", "sender", "private", "whose"),
    [
        ("7", "7", True, ANN),
        ("70", "7", True, ANN),
        ("-9", "7", False, BOB),
        ("-9_4", "7", False, BOB),
        ("-8", "7", False, "operator"),
        ("8", "8", True, "operator"),
    ],
)
def test_groups_count_by_their_chat_alone_and_topics_by_their_group(
    chat: str, sender: str, private: bool, whose: str
) -> None:
    rules = Rules("telegram", ChannelRules(principals={"telegram:7": ANN, "-9": BOB}), "main")
    assert rules.chat(chat, Sender(sender), private=private).principal_id == whose


@pytest.mark.parametrize("wrong", ["ann", "prin-1", ""])
def test_what_isn_t_a_principal_s_id_is_refused_in_the_settings(wrong: str) -> None:
    values: dict[str, Any] = {"principals": {"7": wrong}}
    with pytest.raises(ValidationError, match="principals"):
        ChannelRules.model_validate(values)

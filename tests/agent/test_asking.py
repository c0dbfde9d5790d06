"""What a request for a reply says of thinking."""

from __future__ import annotations

import pytest

from host.agent.asking import within_output


@pytest.mark.parametrize(
    ("max_tokens", "left"), [(3_001, 3_000), (3_000, 1_500), (2_048, 1_024), (2_047, None), (1, None)]
)
def test_a_thinking_budget_is_below_the_output_and_never_below_the_least_the_api_takes(
    max_tokens: int, left: int | None
) -> None:
    asked = {"max_tokens": max_tokens, "thinking": {"type": "enabled", "budget_tokens": 3_000}}
    sent = within_output(asked)
    assert sent == {
        "max_tokens": max_tokens,
        **({"thinking": {"type": "enabled", "budget_tokens": left}} if left else {}),
    }
    assert asked["thinking"] == {"type": "enabled", "budget_tokens": 3_000}

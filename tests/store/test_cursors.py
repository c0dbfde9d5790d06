"""A cursor says nothing of how many rows others have, and holds wherever the secret is the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.store.rows import Cursors

POSITIONS = st.lists(st.integers(0, 2**62) | st.text(max_size=80), min_size=1, max_size=3)


def of(secret: str) -> Cursors:
    cursors = Cursors()
    cursors.share(secret)
    return cursors


@given(POSITIONS)
def test_a_cursor_is_its_position_after_a_restart_and_at_another_host(position: list[int | str]) -> None:
    assert of("secret").unseal(of("secret").seal(position)) == position


@given(st.integers(1, 10**9), st.integers(1, 10**9))
def test_cursors_of_small_and_of_large_numbers_look_alike(one: int, other: int) -> None:
    first, second = (Cursors().seal([number]) for number in (one, other))
    assert len(first) == len(second)
    assert f"[{one}]".encode().hex() not in first


@given(POSITIONS, st.integers(0, 2**16))
def test_a_changed_cursor_and_one_of_another_secret_are_refused(
    position: list[int | str], where: int
) -> None:
    sealed = bytearray.fromhex(of("secret").seal(position))
    with pytest.raises(ValueError, match="not sealed here"):
        of("other").unseal(sealed.hex())
    sealed[where % len(sealed)] ^= 1
    with pytest.raises(ValueError, match="not sealed here"):
        of("secret").unseal(sealed.hex())


@pytest.mark.parametrize("text", ["", "5", "zz", "5b5d", "00" * 16, "5b2261225d"])
def test_what_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        Cursors().unseal(text)

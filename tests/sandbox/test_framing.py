"""The host and the inside of the sandbox have a framing each; they are one."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.sandbox import supervisor
from host.sandbox.worker import frames
from shared.jsons import loads
from shared.processes import Frames, framed

MESSAGES = st.lists(st.dictionaries(st.text(), st.integers(-(2**53), 2**53) | st.text()), max_size=5)


@given(MESSAGES, st.integers(1, 9))
def test_what_one_side_writes_the_other_reads(messages: list[dict[str, object]], step: int) -> None:
    from_host = b"".join(map(supervisor.encode, messages))
    from_inside = b"".join(map(frames.encode, messages))
    inside, host = frames.Decoder(), Frames(supervisor.MAX_FRAME)
    pieces = range(0, max(len(from_host), len(from_inside)), step)
    heard = [message for at in pieces for message in inside.feed(from_host[at : at + step])]
    answered = [loads(body) for at in pieces for body in host.feed(from_inside[at : at + step])]
    assert heard == answered == messages


@pytest.mark.parametrize("speaks", [False, True])
async def test_the_host_sees_that_the_other_side_is_gone_or_says_what_nobody_asked_for(speaks: bool) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        line = supervisor.Wire(ours)
        assert line.has_ended() is False
        if speaks:
            theirs.send(b"x")
        else:
            theirs.close()
        assert line.has_ended() is True
        line.close()


def test_both_sides_refuse_what_is_longer_than_the_other_takes() -> None:
    assert supervisor.MAX_FRAME == frames.MAX_FRAME
    longest = (supervisor.MAX_FRAME + 1).to_bytes(4, "big")
    with pytest.raises(ValueError, match="bytes"):
        Frames(supervisor.MAX_FRAME).feed(longest)
    with pytest.raises(frames.Closed):
        frames.Decoder().feed(longest)
    with pytest.raises(ValueError, match="larger"):
        framed(bytes(supervisor.MAX_FRAME + 1), supervisor.MAX_FRAME)

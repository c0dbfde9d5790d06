"""The estimate of a request's tokens, made before anybody counted them."""

from __future__ import annotations

from host.agent.window import IMAGE_TOKENS, estimated_input, estimated_text
from tests.fakes.protocol import input_tokens

PROSE = "The quick brown fox jumps over the lazy dog, and nobody in the village thought much of it. "


def request(*content: object) -> dict[str, object]:
    return {
        "system": [{"type": "text", "text": PROSE}],
        "tools": [{"name": "exec", "input_schema": {"type": "object"}}],
        "messages": [{"role": "user", "content": list(content)}],
        "max_tokens": 100,
    }


def test_prose_is_estimated_on_the_high_side() -> None:
    asked = request({"type": "text", "text": PROSE * 100})
    assert input_tokens(asked) <= estimated_input(asked) <= 2 * input_tokens(asked)


def test_an_image_counts_by_its_size_on_the_screen_not_in_bytes() -> None:
    image = {"type": "image", "source": {"type": "base64", "data": "A" * 1_000_000}}
    more = estimated_input(request(image)) - estimated_input(request())
    assert more == IMAGE_TOKENS


def test_letters_beyond_ascii_count_by_their_bytes() -> None:
    latin, greek = (estimated_input(request({"type": "text", "text": text * 300})) for text in "aα")
    assert greek - latin == 100


def test_a_piece_of_text_counts_at_least_one() -> None:
    assert [estimated_text(number) for number in (0, 1, 3, 4)] == [0, 1, 1, 2]

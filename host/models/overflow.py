"""What servers say when a request or its ``max_tokens`` is too large, in the words of each of them.

Known are Anthropic, Bedrock, Vertex and Gemini, OpenAI and OpenRouter, vLLM, SGLang, TGI, Mistral, Groq,
DeepSeek, llama.cpp, LM Studio and Ollama. Of several patterns the first that fits counts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

_LONGEST: Final = 10_000
"""Characters of an error that are looked at."""


def _patterns(*texts: str) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(text, re.IGNORECASE) for text in texts)


_TOO_LONG: Final = re.compile(
    r"\b(?:prompt|input|request)\b.{0,30}(?<!string )too long|context.{0,20}(?:window|length|limit|size)"
    r"|too many tokens|n_ctx|token count.{0,20}exceeds|length of the messages|`inputs` tokens",
    re.IGNORECASE,
)
_ABOUT_OUTPUT: Final = re.compile(
    r"max[_ ]?(?:completion_|new_)?tokens.{0,60}(?:too large|exceed|>|less than|at most|range|must be <)"
    r"|maximum tokens you requested|maxoutputtokens",
    re.IGNORECASE,
)
_OUTPUT: Final = _patterns(
    r"> (\d{1,9}),? which is the maximum allowed number of output tokens",
    r"at most (\d{1,9}) (?:completion|output) tokens",
    r"max_tokens is \[1, (\d{1,9})\]",
    r"max_tokens\W{1,4}(?:must be|should be)? ?less than or equal to \W?(\d{1,9})",
    r"exceeds the model limit of (\d{1,9})",
    r"max_tokens\W{1,3}\d{1,9} > (\d{1,9})(?! - )",
    r"\(inclusive\) to (\d{1,9}) \(exclusive\)",
)
_WINDOW: Final = _patterns(
    r"\d{1,9} \+ \d{1,9} > (\d{3,9})",
    r"\d{1,9} > (\d{3,9}) - \d{1,9}",
    r"\d{1,9}(?: tokens?)? > (\d{3,9})",
    r"(?:context (?:length|window|size)|n_ctx\b)[^\d+]{0,20}?(?<!by )(\d{3,9})",
    r"(\d{3,9}) maximum context",
    r"must be <= (\d{3,9})",
    r"(?:number of tokens allowed|exceeds limit of)\W{1,3}(\d{3,9})",
    r"tokens, max (\d{3,9})",
)
_TOKENS: Final = _patterns(
    r"(\d{1,9}) \+ \d{1,9} > \d{3,9}",
    r"\d{1,9} > \d{3,9} - (\d{1,9})",
    r"(\d{1,9}) (?:input|prompt|`inputs`) tokens",
    r"(\d{1,9})(?: tokens)? (?:in the|of text|from the) (?:input|messages|prompt)",
    r"n_prompt_tokens\W{1,4}(\d{1,9})",
    r"(?:prompt|request|token count)(?: contains| is too long:)? ?\(?(\d{1,9})(?: tokens|\))",
    r"(\d{1,9})(?: tokens?) > \d{3,9}",
)


@dataclass(frozen=True, slots=True)
class Overflow:
    """Why a request was too large: ``max_tokens`` if less output would do, and the figures that were named.

    ``window`` is input and output together, ``tokens`` the input, ``output`` the most output.
    """

    reason: Literal["too_long", "max_tokens"]
    tokens: int | None = None
    window: int | None = None
    output: int | None = None


def overflow(said: str) -> Overflow | None:
    """Return what an error says about sizes, None if it is about something else."""
    said = re.sub(r"(?<=\d),(?=\d{3}\b)", "", said[:_LONGEST])
    output = _first(_OUTPUT, said)
    if output is None and not (_TOO_LONG.search(said) or _ABOUT_OUTPUT.search(said)):
        return None
    if output is not None:
        return Overflow("max_tokens", output=output - ("exclusive" in said))
    tokens, window = _first(_TOKENS, said), _first(_WINDOW, said)
    fits = bool(_ABOUT_OUTPUT.search(said)) if tokens is None or window is None else tokens < window
    return Overflow("max_tokens" if fits else "too_long", tokens, window)


def _first(patterns: tuple[re.Pattern[str], ...], said: str) -> int | None:
    return next((int(found[1]) for pattern in patterns if (found := pattern.search(said))), None)

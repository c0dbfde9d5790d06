"""From the errors of the API, also inside a stream, to ``ModelError``.

What servers say of a request or a ``max_tokens`` that is too large is read in the words of each. Known are
Anthropic, Bedrock, Vertex and Gemini, OpenAI and OpenRouter, vLLM, SGLang, TGI, Mistral, Groq, DeepSeek,
llama.cpp, LM Studio and Ollama. Of several patterns the first that fits counts.
"""

import json
import math
import re
from dataclasses import dataclass
from typing import Any, Final, Literal

import httpx2

from host.ports import ModelError
from shared.clock import ms_of_http_date, now_ms

SAID: Final = 500
"""Characters of the API's own words that are kept."""

# An error event inside a stream comes with the stream's own 200; its type says which status it stands for
# (https://platform.claude.com/docs/en/api/errors).
_STATUS_OF_TYPE: Final = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
_SENTENCES: Final = {
    400: "The model API refused the request",
    401: "The model API refused the credential",
    403: "The model API denies this credential the request",
    404: "The model API knows no such model or address",
    413: "The request is too large for the model API",
    422: "The model API refused the request",
    429: "The model API is limiting the rate of requests",
    529: "The model API is overloaded",
}
_RETRYABLE: Final = frozenset({408, 409, 429})
_NOT_ABOUT_SIZE: Final = frozenset({401, 403, 429})
_TYPE: Final = re.compile("[A-Za-z_]{1,60}")


def json_or_text(said: str) -> object:
    """Return what an error's JSON is, or its text."""
    try:
        return json.loads(said)
    except (ValueError, RecursionError):
        return said


def status_error(response: httpx2.Response, body: object) -> ModelError:
    """Return the error that an answer is; one inside an answer of 200 stands for its type or code."""
    error = _error_in(body)
    kind = str(error.get("type"))
    kind = kind if _TYPE.fullmatch(kind) and kind != "None" else ""
    status = response.status_code
    if response.is_success:
        code = error.get("code")
        status = code if isinstance(code, int) and 400 <= code < 600 else _STATUS_OF_TYPE.get(kind, 500)
    sentence = _SENTENCES.get(status, "The model API failed")
    what = f"{status} {kind}" if kind else str(status)
    size = None if status in _NOT_ABOUT_SIZE else overflow(_text(body))
    too_large = status == 413 and size is None
    return ModelError(
        f"{sentence} ({what}).",
        retryable=size is None and _is_retryable(status, response.headers),
        retry_after_s=_retry_after(response.headers),
        status=status,
        reason="too_long" if too_large else size.reason if size else "",
        tokens=size.tokens if size else None,
        window=size.window if size else None,
        output=size.output if size else None,
        said=_said(body, error, response),
    )


def not_messages(kind: str) -> ModelError:
    """Return the error for an answer of 200 that is none of this API."""
    return ModelError(
        f"The server answered {kind}, which is no answer of the Messages API. Check the address of the model "
        "(ANTHROPIC_BASE_URL or api_base).",
        retryable=False,
    )


def _error_in(body: object) -> dict[str, Any]:
    body = body[0] if isinstance(body, list) and len(body) == 1 else body
    error = body.get("error", body) if isinstance(body, dict) else {}
    return error if isinstance(error, dict) else {"message": error}


def _said(body: object, error: dict[str, Any], response: httpx2.Response) -> str:
    """Return the reason in one line: its message if there is one, else the whole body; no page of HTML."""
    words = error.get("message") or error.get("detail") or _text(body)
    text = words if isinstance(words, str) else _text(words)
    if text.lstrip().startswith("<"):
        text = f"[{response.headers.get('content-type', 'text/html')}]"
    return " ".join(text.split())[:SAID]


def _text(body: object) -> str:
    if body is None:
        return ""
    return body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)


def _is_retryable(status: int, headers: httpx2.Headers) -> bool:
    # The API's own word counts more than the status: a 429 for an exhausted budget says "false".
    word = headers.get("x-should-retry")
    if word in ("true", "false"):
        return bool(word == "true")
    return status in _RETRYABLE or status >= 500


def _retry_after(headers: httpx2.Headers) -> float | None:
    millis = _number(headers.get("retry-after-ms"))
    if millis is not None:
        return millis / 1000
    value = headers.get("retry-after")
    seconds = _number(value)
    return _until(value) if seconds is None and value else seconds


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def _until(date: str) -> float | None:
    moment = ms_of_http_date(date)
    return None if moment is None else max(0.0, (moment - now_ms()) / 1000)


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
    output = _first_figure(_OUTPUT, said)
    if output is None and not (_TOO_LONG.search(said) or _ABOUT_OUTPUT.search(said)):
        return None
    if output is not None:
        return Overflow("max_tokens", output=output - ("exclusive" in said))
    tokens, window = _first_figure(_TOKENS, said), _first_figure(_WINDOW, said)
    fits = bool(_ABOUT_OUTPUT.search(said)) if tokens is None or window is None else tokens < window
    return Overflow("max_tokens" if fits else "too_long", tokens, window)


def _first_figure(patterns: tuple[re.Pattern[str], ...], said: str) -> int | None:
    return next((int(found[1]) for pattern in patterns if (found := pattern.search(said))), None)

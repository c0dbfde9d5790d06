"""What a PDF says, page by page: read where nothing can be reached (``host.sandbox.view``)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, Final

from host.ports import Sandbox, SandboxFault

PAGES: Final = r"^[1-9][0-9]{0,5}(-([1-9][0-9]{0,5})?)?$"
MOST_CHARACTERS: Final = 50_000
"""Of the text of all pages of one answer, unless the first has more."""
LAST: Final = 10**6
_RANGE: Final = re.compile(PAGES)


async def pdf_text(
    sandbox: Sandbox, descriptor: int, called: str, pages: str = "1-", most: int = MOST_CHARACTERS
) -> str:
    """Return the text of pages (``3``, ``2-5``, ``4-``) of an open PDF, which is closed, under a header that
    says how to get the rest. Raises ``SandboxFault``.
    """
    try:
        first, last = span_of(pages)
        found = await sandbox.view(descriptor, "text", first=first, last=last, most=most)
    finally:
        os.close(descriptor)
    return told(found, called, first)


def told(found: Mapping[str, Any], called: str, first: int = 1) -> str:
    """Return what ``view`` has found of a PDF's text from page ``first`` on, in words."""
    if "fault" in found:
        return f"[{called}; its text can't be shown: {found['fault']}]"
    shown, count = [str(page).strip() for page in found["pages"]], found["count"]
    if not shown:
        return f"[{called}, {count} pages; nothing at page {first}]"
    end = first + len(shown) - 1
    tail = "end of file" if end >= count else f'more follow (pages="{end + 1}-")'
    bodies = (f"[page {first + at}]\n{text or '(no text)'}" for at, text in enumerate(shown))
    return "\n".join([f"[{called}, {count} pages; pages {first}-{end}; {tail}]", *bodies])


def span_of(pages: str) -> tuple[int, int]:
    """Return the first and the last of the pages that are asked for. Raises ``SandboxFault``."""
    if not _RANGE.fullmatch(pages):
        raise SandboxFault("pages must be a number or a range, such as 3, 2-5 or 4-")
    first, dash, last = pages.partition("-")
    return int(first), int(last or (LAST if dash else first))

"""GET /console: the web console's files. They hold nothing, so they need no token; what they ask for does."""

import hashlib
from collections.abc import Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from host.http.routing import ANY, Api, operation
from shared.errors import NotFound

HERE: Final = Path(__file__).parent.parent / "console"
PAGE: Final = "/console"

KINDS: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

FILES: Final = frozenset(str(path.relative_to(HERE)) for path in HERE.rglob("*") if path.suffix in KINDS)
"""All there is: a request's path is looked up here and never becomes a path of the file system."""

POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
"""Nothing inline, nothing from elsewhere, and no text ever becomes HTML (https://www.w3.org/TR/CSP3/)."""

HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    # Asked for each time and answered by 304: after an update no page mixes old files with new ones.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    kind: str
    etag: str


class ConsoleApi(Api):
    """The routes below /console, and the way there."""

    @operation("GET", "/", scope=ANY, listed=False)
    async def root(self, request: Request) -> Response:
        """Lead a browser to the page; programs find nothing here."""
        if "text/html" not in request.headers.get("accept", ""):
            raise NotFound("There is nothing at this path.")
        return RedirectResponse("console", status_code=307, headers=HEADERS)

    def open_paths(self) -> Set[str]:
        """Return the paths of all files: they need no token."""
        return {"/", PAGE, f"{PAGE}/", *(f"{PAGE}/{name}" for name in FILES)}

    @operation("GET", PAGE, scope=ANY, listed=False)
    async def page(self, request: Request) -> Response:
        """Return the page."""
        return _answer(request, "index.html")

    @operation("GET", f"{PAGE}/", scope=ANY, listed=False)
    async def slash(self, request: Request) -> Response:
        """Lead to the page, whose addresses are relative to it."""
        return RedirectResponse("../console", status_code=308, headers=HEADERS)

    @operation("GET", f"{PAGE}/{{name:path}}", scope=ANY, listed=False)
    async def file(self, request: Request) -> Response:
        """Return one of the listed files."""
        return _answer(request, request.path_params["name"])


def _answer(request: Request, name: str) -> Response:
    if name not in FILES:
        raise NotFound("There is nothing at this path.")
    file = _file(name)
    headers = {**HEADERS, "ETag": file.etag}
    if _matches(request.headers.get("if-none-match", ""), file.etag):
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.kind, headers=headers)


@cache
def _file(name: str) -> _File:
    """Return a listed file, read once."""
    path = HERE / name
    content = path.read_bytes()
    return _File(content, KINDS[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')


def _matches(wanted: str, etag: str) -> bool:
    """Compare as RFC 9110, section 13.1.2 says: weakly, any of a list, or anything."""
    tags = [tag.strip().removeprefix("W/") for tag in wanted.split(",")]
    return etag in tags or tags == ["*"]

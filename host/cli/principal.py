"""``picoclaw principal``: users of one host, each with conversations, files, limits and tokens of its own."""

from __future__ import annotations

import os
import tarfile
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import quote

import typer

from host.cli.client import HostClient, Json, Token, Url, host
from host.cli.terminal import fail, judged, shown, table, tell
from host.cli.token import Expires, issue
from shared import jsons

app = typer.Typer(help="Users of one host, held apart: their limits and tokens.", no_args_is_help=True)

PrincipalId = Annotated[str, typer.Argument(metavar="ID", help="The principal's id, as `list` shows it.")]
Scope = Annotated[
    list[str] | None, typer.Option(help="What it is for; all if not given. Once for each scope.")
]
LOOK_EVERY_S: Final = 0.5
GONE_WITHIN_S: Final = 300.0


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What people call it.")],
    scope: Scope = None,
    day_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens it may use on a day.")] = None,
    day_dollars: Annotated[float | None, typer.Option(min=0, help="Dollars it may spend on a day.")] = None,
    workspace_mb: Annotated[int | None, typer.Option(min=1, help="MiB that its files may take.")] = None,
    subject: Annotated[str | None, typer.Option(help="What signed tokens call it (auth.jwt).")] = None,
    terms: Annotated[
        str | None, typer.Option(help="All other limits as JSON, with the fields of POST /principals.")
    ] = None,
    url: Url = None,
    token: Token = None,
    json: Json = False,
) -> None:
    """Make a principal and write its id to standard output."""
    body = {"name": name, **_object(terms)}
    day = {"tokens": day_tokens, "dollars": day_dollars}
    if spent := {what: most for what, most in day.items() if most is not None}:
        body["budgets"] = {**body.get("budgets", {}), "day": spent}
    said = {"scopes": scope, "workspace_mb": workspace_mb, "subject": subject}
    body |= {field: value for field, value in said.items() if value is not None}
    with host(url, token) as client:
        made = client.request("POST", "/principals", body)
    tell(made, made["id"], json=json)


@app.command("list")
def list_principals(url: Url = None, token: Token = None, json: Json = False) -> None:
    """List the principals in the order they were made."""
    with host(url, token, say=not json) as client:
        found = list(client.pages("/principals", "principals"))
    made = table("id", "name", "status", "scopes", "made")
    for each in found:
        scopes = " ".join(each["scopes"])
        made.add_row(*map(shown, (each["id"], each["name"], each["status"], scopes, each["created_at"])))
    tell(found, made, json=json)


@app.command()
def show(principal: PrincipalId, url: Url = None, token: Token = None, json: Json = False) -> None:
    """Show a principal: its limits, and what is used of them."""
    with host(url, token, say=not json) as client:
        found = client.request("GET", _path(principal))
    made = table("", "")
    for field, value in (found | found["used"]).items():
        if field == "used":
            continue
        said = value if isinstance(value, str | int | float) else jsons.dumps(value)
        made.add_row(field, "-" if value is None else shown(str(said)))
    tell(found, made, json=json)


@app.command("token")
def make_token(
    principal: PrincipalId,
    name: Annotated[str, typer.Option(help="What it is for.")] = "",
    scope: Scope = None,
    expires: Expires = None,
    url: Url = None,
    token: Token = None,
    json: Json = False,
) -> None:
    """Make a token and write it to standard output, once: the host keeps only a digest."""
    body = {"name": name, **({"scopes": scope} if scope else {})}
    issue(f"{_path(principal)}/tokens", body, expires, url, token, json=json)


@app.command()
def suspend(principal: PrincipalId, url: Url = None, token: Token = None, json: Json = False) -> None:
    """End its runs and refuse its requests, until `resume`."""
    _become(principal, "suspended", url, token, json=json)


@app.command()
def resume(principal: PrincipalId, url: Url = None, token: Token = None, json: Json = False) -> None:
    """Let a suspended principal act again."""
    _become(principal, "active", url, token, json=json)


def _become(principal: str, status: str, url: str | None, token: str | None, *, json: bool) -> None:
    with host(url, token) as client:
        changed = client.request("PATCH", _path(principal), {"status": status})
    tell(changed, f"{shown(changed['name'])} is {status}.", json=json)


@app.command()
def delete(
    principal: PrincipalId,
    prove: Annotated[
        bool, typer.Option("--prove", help="Wait until all is gone, and list what was looked for.")
    ] = False,
    url: Url = None,
    token: Token = None,
    json: Json = False,
) -> None:
    """Delete a principal and all that is its; exit code 1 when --prove still finds something."""
    with host(url, token) as client:
        going = client.request("DELETE", _path(principal))
        left = _gone(client, principal) if prove else None
    if left is None:
        tell(going, "It is refused from now on, and all that is its goes.", json=json)
        return
    if json:
        tell(left, "", json=True)
    else:
        for each in left["places"]:
            judged("fault" if each["found"] else "ok", each["place"], f"{each['found']} found")
        for kept in left["kept"]:
            judged("note", "kept", kept)
    if any(each["found"] for each in left["places"]):
        raise SystemExit(1)


def _gone(client: HostClient, principal: str) -> dict[str, Any]:
    """Wait until the host has removed all, and return what it finds then."""
    until = time.monotonic() + GONE_WITHIN_S
    while True:
        left: dict[str, Any] = client.request("GET", f"{_path(principal)}/remains")
        done = left["status"] == "deleted" and not any(each["found"] for each in left["places"])
        if done or time.monotonic() > until:
            return left
        time.sleep(LOOK_EVERY_S)


@app.command()
def export(
    principal: PrincipalId,
    file: Annotated[Path, typer.Argument(help="The archive to write, such as ann.tar.gz.")],
    url: Url = None,
    token: Token = None,
    json: Json = False,
) -> None:
    """Write all that a principal has into an archive: what is stored as JSON, and its files.

    Files are those of this machine: run it where the host runs.
    """
    with host(url, token, say=not json) as client:
        found = client.request("GET", _path(principal))
        try:
            with (
                open(file, "xb", opener=_private) as target,
                tarfile.open(fileobj=target, mode="w:gz") as tar,
            ):
                _add(tar, "principal.json", found)
                for kind, items in _rows(client, principal):
                    _add(tar, f"{kind}.json", items)
                for place in client.request("GET", f"{_path(principal)}/remains")["places"]:
                    _add_files(tar, place["place"].removeprefix("directory "))
        except OSError as error:
            fail(f"{error.filename or file}: {error.strerror}")
    tell({"principal_id": principal, "file": str(file)}, f"Wrote {shown(str(file))}.", json=json)


def _rows(client: HostClient, principal: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    whose = {"principal_id": principal}
    conversations = list(client.pages("/chat", "conversations", **whose, include_temporary="true"))
    yield "conversations", conversations
    for each in conversations:
        path = f"/chat/{quote(each['conversation_id'], safe='')}"
        yield f"messages/{each['conversation_id']}", list(client.pages(f"{path}/messages", "messages"))
    for kind in ("tasks", "runs", "approvals", "usage", "audit"):
        yield kind, list(client.pages(f"/{kind}", kind, **whose))


def _add(tar: tarfile.TarFile, name: str, value: Any) -> None:
    data = jsons.dumps(value).encode()
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = len(data), 0o600, int(time.time())
    tar.addfile(entry, BytesIO(data))


def _add_files(tar: tarfile.TarFile, place: str) -> None:
    path = Path(place)
    if path.is_absolute() and path.is_dir():
        tar.add(path, f"files{path.suffix}")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _path(principal: str) -> str:
    return f"/principals/{quote(principal, safe='')}"


def _object(text: str | None) -> dict[str, Any]:
    try:
        said = jsons.loads(text) if text else {}
    except ValueError:
        said = None
    if not isinstance(said, dict):
        fail('--terms takes a JSON object, such as \'{"models": ["claude-haiku-5-5"]}\'.', 2)
    return said

"""Users of one host, each with conversations, files and limits of its own, and the tokens of outside agents.

``picoclaw principal`` and ``picoclaw token``.
"""

import os
import tarfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.text import Text

from host.cli.client import HostClient, asking, at
from host.cli.terminal import Told, fail, judged, listing, milliseconds, named, shown, table
from shared import jsons

app = typer.Typer(help="Users of one host, held apart: their limits and tokens.", no_args_is_help=True)
token_app = typer.Typer(help="Tokens with which outside agents reach /mcp.", no_args_is_help=True)

Expires = Annotated[
    str | None, typer.Option(help="How long it lasts, such as 90d, 12h or 30m; until it is revoked.")
]
PrincipalId = Annotated[str, typer.Argument(metavar="ID", help="The principal's id, as `list` shows it.")]
Scope = Annotated[
    list[str] | None, typer.Option(help="What it is for; all if not given. Once for each scope.")
]
LOOK_EVERY_S: Final = 0.5
GONE_WITHIN_S: Final = 300.0


@app.command()
@asking
def create(
    client: HostClient,
    name: Annotated[str, typer.Argument(help="What people call it.")],
    scope: Scope = None,
    day_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens it may use on a day.")] = None,
    day_dollars: Annotated[
        float | None, typer.Option(min=0, max=10**9, help="Dollars it may spend on a day.")
    ] = None,
    workspace_mb: Annotated[int | None, typer.Option(min=1, help="MiB that its files may take.")] = None,
    subject: Annotated[str | None, typer.Option(help="What signed tokens call it (auth.jwt).")] = None,
    terms: Annotated[
        str | None, typer.Option(help="All other limits as JSON, with the fields of POST /principals.")
    ] = None,
) -> Told:
    """Make a principal and write its id to standard output."""
    body = {**_object(terms), "name": name}
    day = {"tokens": day_tokens, "dollars": day_dollars}
    if spent := {what: most for what, most in day.items() if most is not None}:
        budgets = _within(body, "budgets")
        body["budgets"] = {**budgets, "day": {**_within(budgets, "day"), **spent}}
    said = {"scopes": scope, "workspace_mb": workspace_mb, "subject": subject}
    body |= {field: value for field, value in said.items() if value is not None}
    made = client.request("POST", "/principals", body)
    return Told(made, made["id"])


@app.command("list")
@asking
def list_principals(client: HostClient) -> Told:
    """List the principals in the order they were made."""
    return listing(
        list(client.pages("/principals", "principals")),
        "No principals.",
        {
            "id": "id",
            "name": "name",
            "status": "status",
            "scopes": lambda each: " ".join(each["scopes"]),
            "made": "created_at",
        },
    )


@app.command()
@asking
def show(client: HostClient, principal: PrincipalId) -> Told:
    """Show a principal: its limits, and what is used of them."""
    found = client.request("GET", at("principals", principal))
    made = table("", "")
    for field, value in (found | found["used"]).items():
        if field == "used":
            continue
        said = value if isinstance(value, str | int | float) else jsons.dumps(value)
        made.add_row(field, "-" if value is None else shown(str(said)))
    return Told(found, made)


@app.command("token")
@asking
def make_token(
    client: HostClient,
    principal: PrincipalId,
    name: Annotated[str, typer.Option(help="What it is for.")] = "",
    scope: Scope = None,
    expires: Expires = None,
) -> Told:
    """Make a token and write it to standard output, once: the host keeps only a digest."""
    body = {"name": name, **({"scopes": scope} if scope else {})}
    return issue(client, at("principals", principal, "tokens"), body, expires)


@app.command()
@asking
def suspend(client: HostClient, principal: PrincipalId) -> Told:
    """End its runs and refuse its requests, until `resume`."""
    return _become(client, principal, "suspended")


@app.command()
@asking
def resume(client: HostClient, principal: PrincipalId) -> Told:
    """Let a suspended principal act again."""
    return _become(client, principal, "active")


def _become(client: HostClient, principal: str, status: str) -> Told:
    changed = client.request("PATCH", at("principals", principal), {"status": status})
    return Told(changed, f"{shown(changed['name'])} is {status}.")


@app.command()
@asking
def delete(
    client: HostClient,
    principal: PrincipalId,
    prove: Annotated[
        bool, typer.Option("--prove", help="Wait until all is gone, and list what was looked for.")
    ] = False,
) -> Told:
    """Delete a principal and all that is its; exit code 1 when --prove still finds something."""
    going = client.request("DELETE", at("principals", principal))
    if not prove:
        return Told(going, "It is refused from now on, and all that is its goes.")
    left = _gone(client, principal)
    lines = [
        judged("fault" if each["found"] else "ok", each["place"], f"{each['found']} found")
        for each in left["places"]
    ]
    lines += [judged("note", "kept", kept) for kept in left["kept"]]
    return Told(left, "\n".join(lines), ok=not any(each["found"] for each in left["places"]))


def _gone(client: HostClient, principal: str) -> dict[str, Any]:
    """Wait until the host has removed all, and return what it finds then."""
    until = time.monotonic() + GONE_WITHIN_S
    while True:
        left: dict[str, Any] = client.request("GET", at("principals", principal, "remains"))
        done = left["status"] == "deleted" and not any(each["found"] for each in left["places"])
        if done or time.monotonic() > until:
            return left
        time.sleep(LOOK_EVERY_S)


@app.command()
@asking
def export(
    client: HostClient,
    principal: PrincipalId,
    file: Annotated[Path, typer.Argument(help="The archive to write, such as ann.tar.gz.", callback=named)],
) -> Told:
    """Write all that a principal has into an archive: what is stored as JSON, and its files.

    Files are those of this machine: run it where the host runs.
    """
    found = client.request("GET", at("principals", principal))
    try:
        with (
            open(file, "xb", opener=_private) as target,
            _gone_unless_whole(file),
            tarfile.open(fileobj=target, mode="w:gz") as tar,
        ):
            _add(tar, "principal.json", found)
            for kind, items in _rows(client, principal):
                _add(tar, f"{kind}.json", items)
            for place in client.request("GET", at("principals", principal, "remains"))["places"]:
                _add_files(tar, place["place"].removeprefix("directory "))
    except OSError as error:
        fail(f"{error.filename or file}: {error.strerror}")
    return Told({"principal_id": principal, "file": str(file)}, f"Wrote {shown(str(file))}.")


@contextmanager
def _gone_unless_whole(file: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        file.unlink()
        raise


def _rows(client: HostClient, principal: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    whose = {"principal_id": principal}
    conversations = list(client.pages("/chat", "conversations", **whose, include_temporary="true"))
    yield "conversations", conversations
    for each in conversations:
        path = at("chat", each["conversation_id"], "messages")
        yield f"messages/{each['conversation_id']}", list(client.pages(path, "messages"))
    tasks = list(client.pages("/tasks", "tasks", **whose))
    yield "tasks", tasks
    for each in tasks:
        yield f"task_runs/{each['id']}", list(client.pages(at("task", each["id"], "runs"), "runs"))
    for kind in ("runs", "approvals", "webhooks", "usage", "audit"):
        yield kind, list(client.pages(f"/{kind}", kind, **whose))
    yield "tokens", list(client.pages(at("principals", principal, "tokens"), "tokens"))


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


def _object(text: str | None) -> dict[str, Any]:
    try:
        said = jsons.loads(text) if text else {}
    except ValueError:
        said = None
    if not isinstance(said, dict):
        fail('--terms takes a JSON object, such as \'{"models": ["claude-haiku-5-5"]}\'.', 2)
    return said


def _within(terms: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return an object of the terms, an empty one for none."""
    found = {} if terms.get(name) is None else terms[name]
    if not isinstance(found, dict):
        fail(f"--terms: {name} must be an object.", 2)
    return found


@token_app.command("create")
@asking
def create_token(
    client: HostClient,
    conversation: Annotated[str, typer.Option(help="The conversation it acts for; made if there is none.")],
    main: Annotated[
        bool,
        typer.Option(
            "--main", help="It may change all tasks and write to all conversations of the operator."
        ),
    ] = False,
    expires: Expires = None,
) -> Told:
    """Make a token and write it to standard output, once: the host keeps only a digest."""
    return issue(client, "/tokens", {"conversation_id": conversation, "main": main}, expires)


def issue(client: HostClient, path: str, body: dict[str, Any], expires: str | None) -> Told:
    """Have a token made."""
    if expires is not None:
        body["expires_in_ms"] = milliseconds(expires, "--expires")
    made = client.request("POST", path, body)
    return Told(made, made["token"])


@token_app.command("list")
@asking
def list_tokens(client: HostClient) -> Told:
    """List the tokens, without their texts."""
    return listing(
        list(client.pages("/tokens", "tokens")),
        "No tokens.",
        {
            "id": "id",
            "conversation": "conversation_id",
            "main": lambda token: "yes" if token["main"] else "",
            "made": "created_at",
            "expires": _expiry,
        },
    )


@token_app.command()
@asking
def revoke(
    client: HostClient, token_id: Annotated[str, typer.Argument(help="The token's id, as `list` shows it.")]
) -> Told:
    """End a token at once."""
    client.request("DELETE", at("tokens", token_id))
    return Told({"revoked": token_id}, f"Revoked {shown(token_id)}.")


def _expiry(token: dict[str, Any]) -> str | Text:
    at = token["expires_at"]
    gone = at is not None and datetime.fromisoformat(at) <= datetime.now(UTC)
    return Text(f"{at}, expired", style="red") if gone else at or "never"

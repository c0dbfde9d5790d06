"""``picoclaw files``: the files of a conversation's workspace on a running host."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.table import Table

from host.cli.client import Json, Token, Url, host
from host.cli.terminal import fail, local_time, shown, table, tell

app = typer.Typer(help="The files of a conversation on a running host.", no_args_is_help=True)

Remote = Annotated[str, typer.Argument(help="Path in the workspace.")]
Of = Annotated[str, typer.Option("--conversation", help="Whose workspace.")]


@app.command("ls")
def list_files(
    prefix: Annotated[str, typer.Argument(help="Only paths that begin so, such as data/.")] = "",
    conversation: Of = "main",
    url: Url = None,
    token: Token = None,
    json: Json = False,
) -> None:
    """List files."""
    with host(url, token, say=not json) as client:
        files = list(client.pages(_address(conversation), "files", prefix=prefix))
    tell(files, _table(files), json=json)


@app.command()
def get(
    path: Remote,
    local: Annotated[Path | None, typer.Argument(help="Where to write it; here under its name.")] = None,
    conversation: Of = "main",
    url: Url = None,
    token: Token = None,
    json: Json = False,
) -> None:
    """Fetch a file."""
    target = local or Path(path).name
    target = Path(target, Path(path).name) if Path(target).is_dir() else Path(target)
    part = target.with_name(f"{target.name}.part")
    try:
        with host(url, token, say=not json) as client, part.open("wb") as file:
            for piece in client.fetch(_address(conversation, path)):
                file.write(piece)
        part.replace(target)
    except OSError as error:
        fail(f"{target} can't be written: {error.strerror}")
    finally:
        part.unlink(missing_ok=True)
    tell({"path": path, "file": str(target)}, f"Wrote {shown(str(target))}.", json=json)


@app.command()
def put(
    local: Annotated[Path, typer.Argument(help="The file to send.", exists=True, dir_okay=False)],
    path: Annotated[str | None, typer.Argument(help="Path in the workspace; its name if left out.")] = None,
    conversation: Of = "main",
    url: Url = None,
    token: Token = None,
    json: Json = False,
) -> None:
    """Send a file; one that is there is replaced."""
    name = local.name if path is None else f"{path}{local.name}" if path.endswith("/") else path
    with host(url, token, say=not json) as client, local.open("rb") as file:
        stored = client.send(_address(conversation, name), file, os.fstat(file.fileno()).st_size)
    tell(stored, f"Stored {shown(stored['path'])} ({stored['size']:,} bytes).", json=json)


@app.command("rm")
def remove(
    path: Remote,
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Also a directory that is full.")
    ] = False,
    conversation: Of = "main",
    url: Url = None,
    token: Token = None,
    json: Json = False,
) -> None:
    """Delete a file, or an empty directory."""
    with host(url, token, say=not json) as client:
        client.request(
            "DELETE", _address(conversation, path), params={"recursive": "true"} if recursive else None
        )
    tell({"path": path, "deleted": True}, f"Deleted {shown(path)}.", json=json)


def _address(conversation: str, path: str | None = None) -> str:
    below = "" if path is None else f"/{quote(path)}"
    return f"/chat/{quote(conversation, safe='')}/files{below}"


def _table(files: list[dict[str, Any]]) -> Table:
    made = table("path", "size", "changed")
    for file in files:
        size = f"{file['size']:,}" if file["type"] == "file" else file["type"]
        made.add_row(shown(file["path"]), size, local_time(file["modified_at"]))
    return made

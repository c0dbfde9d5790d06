"""``picoclaw files``: the files of a conversation's workspace on a running host."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from host.cli.client import HostClient, asking, at
from host.cli.terminal import Told, fail, listing, local_time, shown

app = typer.Typer(help="The files of a conversation on a running host.", no_args_is_help=True)

Remote = Annotated[str, typer.Argument(help="Path in the workspace.")]
Of = Annotated[str, typer.Option("--conversation", help="Whose workspace.")]


@app.command("ls")
@asking
def list_files(
    client: HostClient,
    prefix: Annotated[str, typer.Argument(help="Only paths that begin so, such as data/.")] = "",
    conversation: Of = "main",
) -> Told:
    """List files."""
    files = list(client.pages(_address(conversation), "files", prefix=prefix))
    return listing(
        files,
        "No files.",
        {
            "path": "path",
            "size": lambda file: f"{file['size']:,}" if file["type"] == "file" else file["type"],
            "changed": lambda file: local_time(file["modified_at"]),
        },
    )


@app.command()
@asking
def get(
    client: HostClient,
    path: Remote,
    local: Annotated[Path | None, typer.Argument(help="Where to write it; here under its name.")] = None,
    conversation: Of = "main",
) -> Told:
    """Fetch a file."""
    target = local or Path(path).name
    target = Path(target, Path(path).name) if Path(target).is_dir() else Path(target)
    part = target.with_name(f"{target.name}.part")
    try:
        with part.open("wb") as file:
            for piece in client.fetch(_address(conversation, path)):
                file.write(piece)
        part.replace(target)
    except OSError as error:
        fail(f"{target} can't be written: {error.strerror}")
    finally:
        part.unlink(missing_ok=True)
    return Told({"path": path, "file": str(target)}, f"Wrote {shown(str(target))}.")


@app.command()
@asking
def put(
    client: HostClient,
    local: Annotated[Path, typer.Argument(help="The file to send.", exists=True, dir_okay=False)],
    path: Annotated[str | None, typer.Argument(help="Path in the workspace; its name if left out.")] = None,
    conversation: Of = "main",
) -> Told:
    """Send a file; one that is there is replaced."""
    name = local.name if path is None else f"{path}{local.name}" if path.endswith("/") else path
    with local.open("rb") as file:
        stored = client.send(_address(conversation, name), file, os.fstat(file.fileno()).st_size)
    return Told(stored, f"Stored {shown(stored['path'])} ({stored['size']:,} bytes).")


@app.command("rm")
@asking
def remove(
    client: HostClient,
    path: Remote,
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Also a directory that is full.")
    ] = False,
    conversation: Of = "main",
) -> Told:
    """Delete a file, or an empty directory."""
    params = {"recursive": "true"} if recursive else None
    client.request("DELETE", _address(conversation, path), params=params)
    return Told({"path": path, "deleted": True}, f"Deleted {shown(path)}.")


def _address(conversation: str, path: str | None = None) -> str:
    below = "" if path is None else f"/{quote(path)}"
    return f"{at('chat', conversation, 'files')}{below}"

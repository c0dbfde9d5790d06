"""``picoclaw mcp``: other people's MCP servers, in the words of Claude Code. Alone it is the tool server."""

import os
import queue
import sys
import threading
import webbrowser
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer
from rich.text import Text

from host.cli.client import HostClient, Json, Target, Token, Url, asking, at, find_target, host, surroundings
from host.cli.secrets import SecretFile, rewrite
from host.cli.terminal import HostFault, Told, fail, listing, out, print_json, shown, tell, warn
from host.mcp_clients.server_config import parse_servers
from shared import jsons
from shared.settings import SettingsError
from shared.settings.files import read_text
from shared.settings.load import config_path
from shared.settings.security_yml import NAME

app = typer.Typer(
    help="MCP servers that the agent uses. Without a command: be the tool server on stdin and stdout.",
    no_args_is_help=True,
)

CALLBACK_PORT: Final = 7624
PERSON_SECONDS: Final = 600.0
LOOK_SECONDS: Final = 120.0
NONE_THERE: Final = (404, 409)
"""What the host answers where there is no sign-in, or none is taken."""
WORDS: Final = {
    "ready": "[green]ready[/]",
    "needs_sign_in": "[yellow]needs sign-in[/]",
    "failing": "[red]failing[/]",
}
RESTART: Final = "Restart the host to use it."

ServerName = Annotated[str, typer.Argument(metavar="NAME", help="The server's name.")]


@app.command("list")
@asking
def list_servers(client: HostClient) -> Told:
    """Connect to the servers of the running host and say how each is."""
    servers = client.request("GET", "/mcp/servers", timeout=LOOK_SECONDS)["servers"]
    return listing(
        servers,
        "No servers: `picoclaw mcp add` adds one.",
        {
            "name": "name",
            "state": lambda server: Text.from_markup(WORDS[server["state"]]),
            "tools": lambda server: str(len(server["tools"])),
            "tokens": lambda server: f"{server['tokens']:,}",
            "address": "address",
            "problems": lambda server: " ".join(server["problems"]),
        },
    )


@app.command("test")
@asking
def try_out(client: HostClient, name: ServerName) -> Told:
    """Connect to one server and list its tools; exit code 1 when it is not ready."""
    server = client.request("GET", at("mcp", "servers", name), timeout=LOOK_SECONDS)
    words = [_words(server), *(f"  {shown(tool)}" for tool in server["tools"])]
    return Told(server, "\n".join(words), ok=server["state"] == "ready")


def _words(server: dict[str, Any]) -> str:
    figures = f"{len(server['tools'])} tools, about {server['tokens']:,} tokens"
    state = f"{shown(server['name'])}: {WORDS[server['state']]}, {figures}"
    return "\n".join([state, *map(shown, server["problems"])])


@app.command()
def login(
    name: ServerName,
    callback_port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port on 127.0.0.1 that the browser is sent back to.")
    ] = CALLBACK_PORT,
    url: Url = None,
    token: Token = None,
    json: Json = False,
) -> None:
    """Sign in at a server: the address opens in a browser, or is printed; its answer may be pasted."""
    answers: queue.Queue[str] = queue.Queue()
    with host(url, token, say=not json) as client:
        port = _listen(callback_port, answers.put)
        asked = {"redirect_uri": f"http://127.0.0.1:{port}/callback"}
        address = client.request("POST", at("mcp", "servers", name, "sign-in"), asked)["address"]
        if json:
            print_json({"address": address})
        else:
            out.print("Sign in here:\n")
            sys.stdout.write(f"{shown(address)}\n\n")
            out.print(
                "If the browser is on another machine, paste the address that it ends at:", soft_wrap=True
            )
        _open_browser(address)
        threading.Thread(target=_read_pasted, args=(answers.put,), daemon=True).start()
        try:
            callback = answers.get(timeout=PERSON_SECONDS)
        except queue.Empty:
            fail("Nobody signed in in time.")
        path = at("mcp", "servers", name, "sign-in", "callback")
        server = client.request("POST", path, {"callback": callback}, timeout=LOOK_SECONDS)
    tell(server, f"Signed in. {_words(server)}", json=json)


@app.command()
@asking
def logout(client: HostClient, name: ServerName) -> Told:
    """Forget what is kept of a sign-in."""
    client.request("DELETE", at("mcp", "servers", name, "sign-in"))
    return Told({"name": name, "signed_in": False}, f"Signed out of {shown(name)}.")


def _listen(port: int, heard: Callable[[str], None]) -> int:
    """Take the browser's answer on loopback, in a thread of its own; return the port."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.end_headers()
            self.wfile.write(b"Back to the terminal: this page may be closed.")
            if self.path.startswith("/callback?"):
                heard(self.path)

        def log_message(self, *_: object) -> None:
            """Say nothing: the address holds the code."""

    try:
        server = HTTPServer(("127.0.0.1", port), Answer)
    except OSError:
        server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port


def _read_pasted(heard: Callable[[str], None]) -> None:
    for line in sys.stdin:
        if line.strip():
            heard(line.strip())
            return


def _open_browser(address: str) -> None:
    if sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        webbrowser.open(address)


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": True})
def add(
    name: ServerName,
    target: Annotated[list[str], typer.Argument(metavar="URL | -- COMMAND ARGS...", help="Where it is.")],
    transport: Annotated[
        Literal["http", "sse", "stdio"], typer.Option("--transport", "-t", help="How it is reached.")
    ] = "stdio",
    header: Annotated[list[str] | None, typer.Option("--header", "-H", help="'Name: value'")] = None,
    env: Annotated[list[str] | None, typer.Option("--env", "-e", help="NAME=value")] = None,
    client_id: Annotated[str | None, typer.Option(help="The OAuth client registered beforehand.")] = None,
    json: Json = False,
) -> None:
    """Add a server to config.json; values of headers and variables go to .security.yml."""
    headers, variables = _pairs(header, ":", "--header"), _pairs(env, "=", "--env")
    if transport == "stdio":
        if target[0].startswith(("http://", "https://")):
            fail("An address needs --transport http (or sse).", 2)
        if client_id:
            fail("--client-id needs --transport http (or sse).", 2)
        entry: dict[str, Any] = {"type": "stdio", "command": target[0], "args": target[1:]}
    else:
        if len(target) != 1 or not target[0].startswith(("http://", "https://")):
            fail(f"--transport {transport} takes one address that begins with http:// or https://.", 2)
        entry = {"type": transport, "url": target[0]}
    secrets = {part: pairs for part, pairs in (("headers", headers), ("env", variables)) if pairs}
    # What is expanded when the host starts can't be judged here.
    open_url = {"url": "https://expanded"} if "${" in entry.get("url", "") else {}
    parse_servers({name: {**entry, **open_url, **secrets}}, stdio_allowed=True, label="tools.mcp.servers")
    if client_id:
        entry["client_id"] = client_id
    path, tree, servers = _config()
    if name in servers:
        fail(f"There is a server {name} already: `picoclaw mcp remove {name}` removes it.")
    servers[name] = entry
    file = _secret_file(path)
    for part, pairs in secrets.items():
        for key, value in pairs.items():
            file.set(f"tools.mcp.servers.{name}.{part}.{key}", value, add=False)
    if secrets:
        file.save()
    rewrite(path, jsons.dumps(tree, indented=True) + "\n", private=False)
    told = {"name": name, "config": str(path), "restart": True}
    tell(told, f"Added {shown(name)} to {shown(str(path))}. {RESTART}", json=json)


@app.command()
def remove(name: ServerName, url: Url = None, token: Token = None, json: Json = False) -> None:
    """Remove a server from config.json, with its secrets and its sign-in."""
    path, tree, servers = _config()
    entry = servers.pop(name, None)
    if entry is None:
        fail(f"There is no server {name} in {path}.")
    file = _secret_file(path)
    if file.remove(f"tools.mcp.servers.{name}"):
        file.save()
    rewrite(path, jsons.dumps(tree, indented=True) + "\n", private=False)
    if not (isinstance(entry, dict) and "command" in entry):
        _sign_out(name, find_target(url, token, os.environ))
    said = f"Removed {shown(name)} from {shown(str(path))}. A restart of the host ends its use."
    tell({"name": name, "config": str(path), "restart": True}, said, json=json)


def _sign_out(name: str, target: Target) -> None:
    try:
        with HostClient(target) as client:
            client.request("DELETE", at("mcp", "servers", name, "sign-in"))
    except HostFault as fault:
        if fault.status not in NONE_THERE:
            warn(f"A sign-in at {name}, if there is one, stays in the store, encrypted: {fault}")


def _pairs(given: list[str] | None, mark: str, option: str) -> dict[str, str]:
    pairs = {}
    for text in given or ():
        key, found, value = text.partition(mark)
        if not found or not key.strip() or "." in key:
            fail(f"{option} takes a name, {mark!r} and a value.", 2)
        pairs[key.strip()] = value.strip()
    return pairs


def _config() -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """Return config.json's path, its tree, and the servers in it, which may be changed."""
    path = config_path(surroundings(os.environ))
    try:
        tree = jsons.loads(read_text(path) or '{"version": 3}')
        node = tree
        for step in ("tools", "mcp", "servers"):
            node = node.setdefault(step, {})
        node.keys()
    except (ValueError, AttributeError):
        fail(f"{path} is not the JSON of a configuration; `picoclaw doctor` says where")
    return path, tree, node


def _secret_file(config: Path) -> SecretFile:
    try:
        return SecretFile(config.parent / NAME)
    except SettingsError as fault:
        fail(str(fault))

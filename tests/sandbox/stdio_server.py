"""An MCP server on stdin and stdout for tests, of the standard library alone: it runs inside the sandbox."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any


def environment() -> str:
    return "\n".join(f"{name}={value}" for name, value in sorted(os.environ.items()))


def read(path: str) -> str:
    with open(path) as file:
        return file.read()


def write(path: str, text: str) -> str:
    with open(path, "w") as file:
        return str(file.write(text))


def run(command: str) -> str:
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def stay(seconds: float) -> str:
    time.sleep(seconds)
    return "stayed"


def die() -> str:
    os.kill(os.getpid(), signal.SIGKILL)
    return "never said"


def leave_a_child_behind() -> str:
    child = subprocess.Popen(["setsid", "sleep", "300"], stdin=subprocess.DEVNULL)
    return str(child.pid)


TOOLS: dict[str, Callable[..., str]] = {
    each.__name__: each for each in (environment, read, write, run, stay, die, leave_a_child_behind)
}
OBJECT = {"type": "object"}


def answer(method: str, params: dict[str, Any]) -> dict[str, Any] | None:
    if method == "initialize":
        info = {"name": "inside", "version": "1"}
        return {
            "protocolVersion": params["protocolVersion"],
            "capabilities": {"tools": {}},
            "serverInfo": info,
        }
    if method == "tools/list":
        return {"tools": [{"name": name, "inputSchema": OBJECT} for name in TOOLS]}
    if method == "tools/call":
        return called(params["name"], params.get("arguments") or {})
    return None


def called(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        text, failed = TOOLS[name](**arguments), False
    except OSError as error:
        text, failed = f"{type(error).__name__}: {error}", True
    return {"content": [{"type": "text", "text": text}], "isError": failed}


def main() -> None:
    for line in sys.stdin:
        message = json.loads(line)
        if "id" not in message:
            continue
        result = answer(message["method"], message.get("params") or {})
        reply: dict[str, Any] = {"jsonrpc": "2.0", "id": message["id"]}
        if result is None:
            reply["error"] = {"code": -32601, "message": "there is no such method"}
        else:
            reply["result"] = result
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

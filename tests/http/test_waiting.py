"""What waits for a person costs rows only: no process, no lease, no place; it keeps what it was asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal
from starlette.requests import Request
from starlette.responses import Response

from tests.chaos.test_failures import SHIFTED_CLOCK
from tests.http.conftest import MakeHost, configure
from tests.http.test_approvals import RULES, answered, asking, chat, goes_on, written
from tests.mcp.odd_servers import OddServer, tool
from tests.mcp.other_servers import listening
from tests.running import HostProcess

HOUR_S = 3600
SECRET = "Bearer hush-hush"
CALL: dict[str, Any] = {"name": "mcp__odd__a", "input": {"input": {"a": 1}}}


def shifted(host: HostProcess, tmp_path: Path) -> Path:
    """Give a host a clock that goes wrong by as many seconds as the returned file says."""
    offset = tmp_path / "offset"
    offset.write_text("0")
    (tmp_path / "sitecustomize.py").write_text(SHIFTED_CLOCK.format(path=str(offset)))
    host.environment["PYTHONPATH"] = str(tmp_path)
    return offset


def test_a_call_waits_for_most_of_a_day_without_a_host_and_expires_after_it(
    make_host: MakeHost, tmp_path: Path
) -> None:
    host = configure(make_host(settings={"MAX_CONCURRENT_RUNS": "1"}), permissions=RULES)
    offset = shifted(host, tmp_path)
    host.start()
    with host.client() as client:
        answered_late, never = chat(client, asking()), chat(client, asking())
        # Each of them would keep the only place, if waiting took one.
        assert chat(client, "another")["status"] == "success"
        states = {run["status"] for run in client.get("/runs").json()["runs"]}
        assert states == {"paused", "success"}
    host.kill()
    offset.write_text(str(23 * HOUR_S))
    host.start()
    with host.client() as client:
        assert answered(client, answered_late["requests"][0]).status_code == 200
        assert goes_on(client, answered_late)["status"] == "success"
        assert written(host) == "x"
        offset.write_text(str(25 * HOUR_S))
        late = answered(client, never["requests"][0])
        assert (late.status_code, late.json()["code"]) == (410, "expired")
        assert written(host) == "x"


class Guarded(OddServer):
    """A server that serves nobody without the secret."""

    async def _serve(self, request: Request) -> Response:
        if request.headers.get("authorization") != SECRET:
            return Response(status_code=401)
        return await super()._serve(request)


@pytest.mark.parametrize("sealed", [True, False])
def test_a_servers_credentials_are_kept_over_a_pause_only_where_they_can_be_sealed(
    make_host: MakeHost, *, sealed: bool
) -> None:
    host = make_host(settings={"SEAL_KEY": "k" * 43} if sealed else {})
    configure(host, tools={"mcp": {"allowed_hosts": ["127.0.0.1"]}})
    server = Guarded([tool("a")])
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(listening(server.app())) as base,
        host.start().client() as client,
    ):
        told = chat(
            client,
            asking(CALL),
            permissions=[{"tool": "mcp__odd__*", "do": "ask"}],
            mcp_servers={"odd": {"url": f"{base}/mcp", "headers": {"Authorization": SECRET}}},
        )
        assert (told["code"], "SEAL_KEY" in str(told.get("warnings"))) == ("approval", not sealed)
        assert answered(client, told["requests"][0]).status_code == 200
        run = goes_on(client, told)
        assert (run["status"], len(server.calls)) == ("success", int(sealed))
    kept = b"".join(path.read_bytes() for path in host.root.rglob("*") if path.is_file())
    assert SECRET.encode() not in kept

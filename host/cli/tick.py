"""``picoclaw tasks check``: what cron, a CronJob or a program beside the host calls to run what is due."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Final

import httpx2
import typer

from host.cli.client import HostClient, HostFault
from host.cli.terminal import fail, print_json

UNAUTHORIZED: Final = 2


def check(
    most: Annotated[int, typer.Option("--max", min=1, help="Most tasks to run.")] = 1,
    every: Annotated[
        float | None, typer.Option(min=1, help="Go on for ever, once in so many seconds.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="Address of the host.")] = None,
    token: Annotated[str | None, typer.Option(help="API token (better in API_TOKEN).")] = None,
) -> None:
    """Run the tasks that are due and write what came of them as JSON."""
    try:
        with HostClient.found(url, token) as host:
            if every is None:
                _check(host, most)
            else:
                _for_ever(host, most, every)
    except HostFault as fault:
        fail(str(fault), UNAUTHORIZED if fault.status == httpx2.codes.UNAUTHORIZED else 1)


def _for_ever(host: HostClient, most: int, every: float) -> None:
    while True:
        due = time.monotonic() + every
        try:
            _check(host, most)
        except HostFault as fault:
            if fault.status == httpx2.codes.UNAUTHORIZED:
                raise
            # A host that starts, drains or restarts is asked again next time.
            print_json({"level": "warning", "logger": "picoclaw.tick", "message": str(fault)})
        sys.stdout.flush()
        time.sleep(max(0.0, due - time.monotonic()))


def _check(host: HostClient, most: int) -> None:
    # How long a task takes is the host's to bound.
    print_json(host.request("POST", "/task/check", {"max": most}, timeout=None))

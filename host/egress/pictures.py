"""Pictures at addresses that a program names: from hosts that the operator allows, no redirect, 8 MiB."""

from __future__ import annotations

from functools import partial
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2

from host.egress.addresses import AddressPolicy, PinnedTransport
from host.egress.receivers import check_address
from host.egress.unpacked import ACCEPTED, Bounded, bound
from shared.errors import InvalidInput

LARGEST: Final = 8 << 20
ANY: Final = "*"
SETTING: Final = "files.picture_hosts"


class _Body(Bounded, httpx2.AsyncByteStream):
    too_much = httpx2.StreamError


async def fetch(url: str, hosts: frozenset[str], most: int) -> bytes:
    """Return what is at an address, at most ``most`` bytes; raises InvalidInput with why there is nothing."""
    await check_address(url, hosts, SETTING)
    host = urlsplit(url).hostname or ""
    if ANY not in hosts and host not in hosts:
        raise InvalidInput(f"url: {SETTING} does not name its host")
    transport = PinnedTransport(AddressPolicy(hosts), bounded=partial(_bounded, min(most, LARGEST)))
    async with httpx2.AsyncClient(transport=transport, timeout=None) as client:
        try:
            response = await client.get(url, headers=ACCEPTED)
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            raise InvalidInput(f"url: {error or 'its server ended the connection'}") from None
    if response.status_code != httpx2.codes.OK:
        raise InvalidInput(f"url: its server answered HTTP {response.status_code}")
    return response.content


def _bounded(most: int, response: httpx2.Response, _refuse: Any) -> httpx2.Response:
    bound(response, _Body, most)
    return response

"""Which proxies may say where a request comes from."""

from __future__ import annotations

from ipaddress import IPv4Network, ip_network

V4_IN_V6 = 96
"""Bits before the IPv4 address in ``::ffff:a.b.c.d`` (RFC 4291, section 2.5.5.2)."""


def checked_proxies(given: tuple[str, ...]) -> tuple[str, ...]:
    """Return addresses and networks in their standard form; raises ``ValueError`` with a sentence."""
    return tuple(_checked(item) for item in given)


def peers(proxies: tuple[str, ...]) -> list[str]:
    """Return the networks as a listening socket may see them: IPv4 also as IPv6 writes it."""
    networks = [ip_network(item) for item in proxies]
    mapped = [
        f"::ffff:{network.network_address}/{V4_IN_V6 + network.prefixlen}"
        for network in networks
        if isinstance(network, IPv4Network)
    ]
    return [*map(str, networks), *mapped]


def _checked(item: str) -> str:
    try:
        network = ip_network(item)
    except ValueError:
        raise ValueError("must hold addresses or networks only, such as 10.0.0.7 or 10.0.0.0/8") from None
    if network.prefixlen == 0:
        raise ValueError("must not hold everybody: any caller could then choose the address it comes from")
    return str(network)

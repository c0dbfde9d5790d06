"""Whose word about the caller's address counts."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest

from shared.settings import SettingsError, load
from shared.settings.sections import peers
from tests.http.conftest import MakeHost
from tests.running import HostProcess, until

FAILURES = {"PICOCLAW_RATE_LIMITS_FAILED_AUTH_PER_MINUTE": "2"}


def statuses(host: HostProcess, forwarded: Iterable[str]) -> list[int]:
    with host.client("wrong") as client:
        return [client.get("/chat", headers={"X-Forwarded-For": said}).status_code for said in forwarded]


def test_each_caller_behind_a_trusted_proxy_has_a_limit_of_its_own(make_host: MakeHost) -> None:
    host = make_host(settings={**FAILURES, "TRUSTED_PROXIES": "127.0.0.1"}).start()
    assert statuses(host, ["198.51.100.1"] * 4) == [401, 401, 429, 429]
    assert statuses(host, ["198.51.100.2", "198.51.100.2:4711"]) == [401, 401]


def test_what_a_caller_adds_to_the_header_does_not_help_it(make_host: MakeHost) -> None:
    host = make_host(settings={**FAILURES, "TRUSTED_PROXIES": "127.0.0.1,10.0.0.0/8"}).start()
    invented = [f"203.0.113.{n}, 198.51.100.1, 10.1.2.{n}" for n in range(4)]
    assert statuses(host, invented) == [401, 401, 429, 429]
    rubbish = [", ,,", "x" * 4000, "[::1", "127.0.0.1", "unknown"]
    assert set(statuses(host, rubbish)) <= {401, 429}


def test_the_access_log_names_the_caller_and_its_principal_and_not_the_proxy(make_host: MakeHost) -> None:
    host = make_host(settings={"TRUSTED_PROXIES": "127.0.0.0/8"}).start()
    with host.client() as client:
        assert client.get("/chat", headers={"X-Forwarded-For": "2001:db8::7"}).status_code == 200
    until(lambda: '"/chat"' in host.log_text)
    line = next(line for line in host.log_text.splitlines() if '"/chat"' in line)
    told = json.loads(line)
    assert (told["client"], told["principal"], told["token"]) == ("2001:db8::7", "operator", None)


def test_a_host_that_listens_on_ipv6_knows_an_ipv4_proxy_too(make_host: MakeHost) -> None:
    host = make_host(settings={**FAILURES, "HOST": "::", "TRUSTED_PROXIES": "127.0.0.1"}).start()
    assert statuses(host, ["198.51.100.1"] * 4) == [401, 401, 429, 429]
    assert statuses(host, ["198.51.100.2"]) == [401]


@pytest.mark.parametrize("given", ["10.0.0.0/33", "10.0.0.1/8", "gateway.internal", "*", "0.0.0.0/0", "::/0"])
def test_only_addresses_and_networks_narrower_than_everybody_can_be_trusted(given: str) -> None:
    with pytest.raises(SettingsError, match=r"^TRUSTED_PROXIES \(environment\) must"):
        load({"HOME": "/nonexistent", "TRUSTED_PROXIES": given})


def test_networks_are_kept_in_their_standard_form() -> None:
    settings = load({"HOME": "/nonexistent", "TRUSTED_PROXIES": "10.0.0.7, 2001:DB8::/32"})
    assert settings.gateway.trusted_proxies == ("10.0.0.7/32", "2001:db8::/32")
    assert "::ffff:10.0.0.7/128" in peers(settings.gateway.trusted_proxies)

"""Every engine has every method of the contract, as the contract words it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, get_type_hints

from shared.store import contract
from shared.store.contract import Store
from tests.contract.store.conftest import OpenStore


def parts(protocol: type) -> Iterator[tuple[str, Any]]:
    return ((name, member) for name, member in vars(protocol).items() if not name.startswith("_"))


def section_of(name: str) -> Any:
    """Return the protocol of one of the store's parts, such as ``runs``."""
    member = vars(Store)[name]
    hint = get_type_hints(member.fget, vars(contract)).get("return")
    return hint if getattr(hint, "_is_protocol", False) else None


SECTIONS = [name for name, member in parts(Store) if isinstance(member, property) and section_of(name)]


def test_the_contract_is_found() -> None:
    assert {"conversations", "runs", "usage", "outbound", "tasks"} <= set(SECTIONS)
    assert sum(len(list(parts(section_of(section)))) for section in SECTIONS) > 40


async def test_an_engine_has_every_method(store: Store) -> None:
    for section in SECTIONS:
        for name, promised in parts(section_of(section)):
            has_it(getattr(getattr(store, section), name), promised)
    for name, promised in parts(Store):
        if inspect.isfunction(promised):
            has_it(getattr(store, name), promised)
        else:
            assert hasattr(store, name)


def has_it(made: Any, promised: Any) -> None:
    assert list(inspect.signature(promised).parameters)[1:] == list(inspect.signature(made).parameters)
    assert inspect.iscoroutinefunction(made) == inspect.iscoroutinefunction(promised)
    assert made.__doc__


async def test_the_store_can_be_opened_more_than_once(open_store: OpenStore) -> None:
    first, second = open_store(), open_store()
    await first.conversations.create("c", 1)
    assert await second.conversations.get("c") is not None

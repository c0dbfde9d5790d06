"""Every engine has every method of the contract, as the contract words it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, get_type_hints

import pytest

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
METHODS = [
    *(("", name) for name, member in parts(Store) if inspect.isfunction(member)),
    *((section, name) for section in SECTIONS for name, _ in parts(section_of(section))),
]


def test_the_contract_is_found() -> None:
    assert {"conversations", "runs", "usage", "outbound", "tasks"} <= set(SECTIONS)
    assert len(METHODS) > 40


@pytest.mark.parametrize(("section", "name"), METHODS)
async def test_an_engine_has_the_method(store: Store, section: str, name: str) -> None:
    promised = getattr(section_of(section) if section else Store, name)
    made = getattr(getattr(store, section) if section else store, name)
    assert list(inspect.signature(promised).parameters)[1:] == list(inspect.signature(made).parameters)
    assert inspect.iscoroutinefunction(made) == inspect.iscoroutinefunction(promised)
    assert made.__doc__


async def test_the_store_can_be_opened_more_than_once(open_store: OpenStore) -> None:
    first, second = open_store(), open_store()
    await first.conversations.create("c", 1)
    assert await second.conversations.get("c") is not None

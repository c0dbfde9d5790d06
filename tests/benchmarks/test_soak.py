"""The soak kills the host in the middle of its work, and finds a store that is not whole."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.soak import check_store, main
from tests.running import new_host
from tests.warm_host import warm


@pytest.fixture(autouse=True)
def commands_are_warm() -> Iterator[None]:
    with warm():
        yield


def test_a_soak_with_principals_and_kills_tells_what_grew(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--turns 40 --conversations 8 --principals 2 --kill-every 20 --rest 0"
    monkeypatch.setattr(sys, "argv", ["soak", *options.split()])
    main()
    told = capsys.readouterr().out
    assert re.findall(r"^ +(\d+) ", told, re.M) == [str(turns) for turns in range(4, 41, 4)]
    grew = ["memory", "descriptors", "processes", "cpu", "turn"]
    assert re.findall(r"^(\w+) grew", told, re.M) == grew


def test_a_store_that_is_not_whole_ends_a_soak(tmp_path: Path) -> None:
    host = new_host(tmp_path / "host", None).start()
    host.stop()
    check_store(host)
    segment = max((tmp_path / "host/store").glob("wal-*"))
    damaged = bytearray(segment.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    segment.write_bytes(bytes(damaged))
    with pytest.raises(RuntimeError, match="the store is not whole"):
        check_store(host)

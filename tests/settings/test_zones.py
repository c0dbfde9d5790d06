"""Which zone counts: the one that is set, else the machine's."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared import clock
from shared.clock import checked_zone, machine_zone
from shared.settings import SettingsError, load


@pytest.mark.parametrize(
    ("target", "zone"),
    [
        ("/usr/share/zoneinfo/Europe/Berlin", "Europe/Berlin"),
        ("../usr/share/zoneinfo/America/New_York", "America/New_York"),
        ("/usr/share/zoneinfo/posix/Asia/Shanghai", "Asia/Shanghai"),
        ("/var/db/timezone/zoneinfo/Australia/Sydney", "Australia/Sydney"),
        ("/usr/share/zoneinfo/Etc/UTC", "UTC"),
        ("/usr/share/zoneinfo/Mars/Olympus", "UTC"),
    ],
)
def test_the_machines_zone_is_where_localtime_points(tmp_path: Path, target: str, zone: str) -> None:
    (tmp_path / "localtime").symlink_to(target)
    # What isn't there resolves to itself, so that the name is what the link says.
    assert machine_zone(tmp_path) == zone


def test_else_it_is_what_etc_timezone_says_else_utc(tmp_path: Path) -> None:
    assert machine_zone(tmp_path) == "UTC"
    (tmp_path / "localtime").write_bytes(b"TZif2")
    (tmp_path / "timezone").write_text("Asia/Tokyo\n")
    assert machine_zone(tmp_path) == "Asia/Tokyo"
    (tmp_path / "timezone").write_text("nonsense")
    assert machine_zone(tmp_path) == "UTC"


@pytest.mark.parametrize(
    ("environ", "zone"),
    [
        ({"TZ": "Asia/Tokyo"}, "Asia/Tokyo"),
        ({"TIMEZONE": "Asia/Tokyo"}, "Asia/Tokyo"),
        ({"TZ": "Europe/Paris", "TIMEZONE": "Asia/Tokyo"}, "Europe/Paris"),
        ({"TZ": ":Asia/Tokyo"}, "Asia/Tokyo"),
        ({"TZ": "/usr/share/zoneinfo/Asia/Tokyo"}, "Asia/Tokyo"),
        ({"TZ": "", "TIMEZONE": ""}, machine_zone()),
        ({"TZ": ":/etc/localtime"}, machine_zone()),
        ({}, machine_zone()),
    ],
)
def test_the_settings_take_it_in_every_form(tmp_path: Path, environ: dict[str, str], zone: str) -> None:
    assert load({"PICOCLAW_HOME": str(tmp_path), **environ}).timezone == zone


@pytest.mark.parametrize("name", ["TZ", "TIMEZONE"])
def test_a_wrong_zone_is_refused_with_its_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match=rf"{name} \(environment\) must be the name of a time zone"):
        load({"PICOCLAW_HOME": str(tmp_path), name: "CET-1CEST"})


def test_the_machines_zone_is_looked_up_where_localtime_5_says() -> None:
    assert Path("/etc") == clock.ETC
    assert checked_zone("Europe/Berlin") == "Europe/Berlin"

"""What is in the image, and what is not."""

from __future__ import annotations

import importlib.util
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from tests.image.container import ROOT, Image

MOST_MEGABYTES = 220
UNCHECKED_HASH = 0b01
NEVER = ("gcc", "cc", "make", "pip", "pip3", "curl", "wget", "git")


def files(root: Path) -> Iterator[Path]:
    for directory, _, names in os.walk(root):
        yield from (Path(directory, name) for name in names)


def megabytes(root: Path) -> float:
    return sum(path.lstat().st_size for path in files(root)) / 1_000_000


def test_it_is_at_most_220_megabytes_above_its_base(image: Image) -> None:
    above = megabytes(image.root) - megabytes(image.base_root)
    print(f"{above:.0f} MB above the base")
    assert 20 < above <= MOST_MEGABYTES


def test_its_configuration_is_what_the_documentation_says(image: Image) -> None:
    config = image.config
    assert config["User"] == "1000:1000"
    assert config["Cmd"] == ["picoclaw", "supervise"]
    assert config["StopSignal"] == "SIGTERM"
    assert set(config["Volumes"]) == {"/data/memory", "/data/principals", "/data/store"}
    assert "9000/tcp" in config["ExposedPorts"]
    environment = dict(entry.split("=", 1) for entry in config["Env"])
    assert environment["HOST"] == "0.0.0.0"
    assert environment["STORE_DIR"] == "/data/store"
    assert environment["MEMORY_DIR"] == "/data/memory"
    assert environment["ORG_DIR"] == "/data/org"
    labels = {name.removeprefix("org.opencontainers.image."): text for name, text in config["Labels"].items()}
    assert (labels["version"], labels["revision"]) == ("9.8.7", "abc1234")
    assert labels["created"] == "2027-01-02T03:04:05Z"
    assert labels["licenses"] == "MIT"
    assert config["Healthcheck"]["Test"][:2] == ["CMD", "/opt/picoclaw/bin/python"]


def test_it_holds_no_compiler_no_installer_no_cache_and_no_tests(image: Image) -> None:
    for directory in ("opt/picoclaw/bin", "usr/local/bin", "usr/bin", "bin"):
        there = {path.name for path in (image.root / directory).glob("*")}
        assert there & set(NEVER) == set(), directory
    assert not (image.root / "root/.cache").exists()
    own = list(files(image.root / "opt/picoclaw"))
    assert [path for path in own if path.suffix in (".whl", ".lock")] == []
    assert not (image.root / "opt/picoclaw/lib/python3.11/site-packages/tests").exists()


def test_every_file_of_the_program_is_there_and_the_same(image: Image) -> None:
    packages = image.root / "opt/picoclaw/lib/python3.11/site-packages"
    own = [path for name in ("host", "mcp_server", "shared") for path in files(ROOT / name)]
    for path in own:
        if path.suffix != ".pyc":
            there = packages / path.relative_to(ROOT)
            assert there.read_bytes() == path.read_bytes(), there


def test_every_module_has_bytecode_that_is_believed_without_a_look_at_its_source(image: Image) -> None:
    modules = [path for path in files(image.root / "opt/picoclaw/lib") if path.suffix == ".py"]
    assert len(modules) > 1000
    for module in modules:
        compiled = Path(importlib.util.cache_from_source(str(module)))
        flags = int.from_bytes(compiled.read_bytes()[4:8], "little")
        assert flags == UNCHECKED_HASH, module


def test_its_user_may_write_nothing_but_the_volumes(image: Image) -> None:
    for directory in ("opt", "etc", "data"):
        for path in files(image.root / directory):
            entry = path.lstat()
            writable = entry.st_uid == 1000 or entry.st_mode & stat.S_IWOTH
            assert not writable or stat.S_ISLNK(entry.st_mode), path
    for name in ("memory", "store"):
        assert (image.root / "data" / name).stat().st_uid == 1000


def test_the_lambda_adapter_is_left_out_unless_it_is_asked_for(image: Image) -> None:
    assert list((image.root / "opt/extensions").iterdir()) == []

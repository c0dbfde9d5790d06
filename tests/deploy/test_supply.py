"""What the image is made of: locked, hashed, under licences that allow it, and listed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALLOWED = re.compile(
    r"\b(MIT|MIT-0|BSD|BSD-\d-Clause|0BSD|Apache|ISC|PSF|PSF-2\.0|Python-2\.0|MPL|MPL-2\.0|LGPL|LGPLv3|LGPL-3\.0-only"
    r"|Unlicense|Public Domain|CNRI-Python|Zlib|ZPL|HPND|WTFPL|Artistic)\b"
)
FORBIDDEN = re.compile(r"\b(A?GPL(v\d|-[\d.]+)?|SSPL|BUSL|Proprietary)\b", re.IGNORECASE)

Lock = dict[str, tuple[str, frozenset[str]]]


def read(name: str) -> Lock:
    """Return each package's version and hashes."""
    entries = re.split(r"\n(?=[a-z0-9])", (ROOT / "requirements" / name).read_text())
    found: Lock = {}
    for entry in entries:
        match = re.match(r"([a-z0-9._-]+)==([^\s;\\]+)", entry)
        if match:
            found[match[1]] = (match[2], frozenset(re.findall(r"sha256:([0-9a-f]{64})", entry)))
    return found


RUNTIME, DEVELOPMENT, BUILD = read("runtime.lock"), read("dev.lock"), read("build.lock")
HELM = read("helm.lock")


@pytest.mark.parametrize("lock", [RUNTIME, DEVELOPMENT, BUILD, HELM], ids=["runtime", "dev", "build", "helm"])
def test_every_locked_package_has_a_version_and_hashes(lock: Lock) -> None:
    assert lock
    assert [name for name, (_, hashes) in lock.items() if not hashes] == []


def test_what_is_tested_is_what_the_image_gets() -> None:
    assert {name: entry for name, entry in RUNTIME.items() if DEVELOPMENT.get(name) != entry} == {}
    assert {name: entry for name, entry in BUILD.items() if DEVELOPMENT.get(name, entry) != entry} == {}


def test_the_build_lock_holds_what_the_build_system_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(project["build-system"]["requires"]) <= set(BUILD)


def test_the_locks_hold_every_dependency_that_the_project_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    development = names(extras.pop("dev"))
    assert names([*project["dependencies"], *chain.from_iterable(extras.values())]) <= set(RUNTIME)
    assert development <= set(DEVELOPMENT)


def names(requirements: list[str]) -> set[str]:
    """Return the normal names of packages (the name normalisation of PyPI's simple API)."""
    return {re.sub(r"[-_.]+", "-", re.split(r"[\[<>=;! ]", item)[0]).lower() for item in requirements}


@pytest.mark.parametrize("name", sorted(RUNTIME))
def test_its_licence_lets_it_into_the_image(name: str) -> None:
    try:
        package = distribution(name)
    except PackageNotFoundError:
        pytest.skip("needs another platform")
    assert package.version == RUNTIME[name][0]
    metadata = package.metadata
    classifiers = [entry for entry in metadata.get_all("Classifier") or [] if entry.startswith("License")]
    given = [(metadata.get_all(field) or [""])[0][:200] for field in ("License-Expression", "License")]
    said = " ".join([*given, *classifiers])
    assert ALLOWED.search(said), said
    assert not FORBIDDEN.search(said.replace("LGPL", "")), said


def released(target: Path) -> Path:
    """Make a release there."""
    environment = {name: value for name, value in os.environ.items() if name != "MAKEFLAGS"}
    command = ["make", "--no-print-directory", "dist", f"DIST={target}"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    return target


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return released(tmp_path_factory.mktemp("release"))


def test_the_bill_of_materials_lists_exactly_what_is_locked(release: Path) -> None:
    bill = json.loads((release / "sbom.cdx.json").read_text())
    assert bill["bomFormat"] == "CycloneDX"
    assert bill["metadata"]["component"]["name"] == "picoclaw"
    listed = {component["name"]: component for component in bill["components"]}
    assert {name: component["version"] for name, component in listed.items()} == {
        name: version for name, (version, _) in RUNTIME.items()
    }
    for name, component in listed.items():
        hashes = {entry["content"] for entry in component["externalReferences"][0]["hashes"]}
        assert hashes == RUNTIME[name][1]


def test_a_release_is_wheel_sdist_bill_and_checksums_and_the_same_bytes_each_time(
    release: Path, tmp_path: Path
) -> None:
    made: list[dict[str, str]] = []
    for target in (release, released(tmp_path)):
        lines = (target / "SHA256SUMS").read_text().splitlines()
        sums = {file: digest for digest, file in (line.split("  ") for line in lines)}
        assert sums == {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in target.iterdir()
            if path.name != "SHA256SUMS"
        }
        made.append(sums)
    assert made[0] == made[1]
    assert {re.sub(r"-\d[\d.]*\d", "", name) for name in made[0]} == {
        "picoclaw-py3-none-any.whl",
        "picoclaw.tar.gz",
        "sbom.cdx.json",
    }

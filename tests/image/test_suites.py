"""Suites of the repository, run inside the image against the packages that are installed there."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.image.container import ROOT, Image

WITHIN_S = 900
PLAIN = "attempt and 1000 and not level and not Landlock"
"""The attempts as uid 1000 with whatever the container offers."""
IN_SHORT = f"{PLAIN} and own"
"""Those of own.yaml; all of them are tried outside of the image each time."""

RUN = (
    "import sys; sys.path.insert(0, '/srv'); sys.path.append('/mnt'); "
    "import pytest; sys.exit(pytest.main(sys.argv[1:]))"
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tests without the program: what they import is the image's."""
    source = tmp_path_factory.mktemp("source")
    for name in ("tests", "benchmarks", "docs"):  # some tests measure with what the benchmarks do
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", ".venvs"))
    shutil.copy(ROOT / "pyproject.toml", source)
    for path in (source, *source.parents):
        path.chmod(path.stat().st_mode | 0o055)
        if path.name.startswith("pytest-of"):
            break
    return source


def run(image: Image, source: Path, temporary: Path, *arguments: str, user: str) -> str:
    """Run pytest in a container; return its last lines, and fail when it does."""
    packages = Path(pytest.__file__).parent.parent
    temporary.mkdir(exist_ok=True)
    temporary.chmod(0o1777)
    volumes = {source: "/srv:ro", packages: "/mnt:ro", temporary: "/tmp"}
    command = image.command(
        "sh", "-c", 'cd /srv && exec "$@"', "_", "/opt/picoclaw/bin/python", "-c", RUN, "-q", *arguments,
        volumes=volumes, user=user, settings={"HYPOTHESIS_STORAGE_DIRECTORY": "/tmp/hypothesis"},
    )  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, env=image.environment, check=False, timeout=WITHIN_S
    )
    assert (temporary / "exit-code").exists(), done.stderr
    code = int((temporary / "exit-code").read_text())
    assert code == 0, done.stdout[-6000:] + done.stderr[-2000:]
    print(done.stdout.splitlines()[-1])
    return done.stdout


@pytest.mark.parametrize(
    "attempts", [pytest.param(PLAIN, id="all", marks=pytest.mark.slow), pytest.param(IN_SHORT, id="in short")]
)
def test_the_sandbox_holds_every_attempt_as_uid_1000(
    image: Image, source: Path, tmp_path: Path, attempts: str
) -> None:
    # The corpus lays out a repository and looks at processes.
    image = Image(image.directory, packages=("git", "procps"))
    said = run(image, source, tmp_path / "tmp", "tests/attack/test_corpus.py", "-k", attempts, user="root")
    assert " passed" in said


@pytest.mark.slow
def test_the_http_suite_passes(image: Image, source: Path, tmp_path: Path) -> None:
    # Other people's clients are brought by a network, and there is none.
    said = run(
        image, source, tmp_path / "tmp", "tests/http", "-m", "not slow", "-n", "2", "--dist", "loadfile",
        "--ignore", "tests/http/test_response_clients.py", user="1000",
    )  # fmt: skip
    assert " passed" in said


def test_the_http_suite_passes_in_short(image: Image, source: Path, tmp_path: Path) -> None:
    # What can't even be read there would be seen by the long one alone.
    run(image, source, tmp_path / "collected", "tests/http", "--collect-only", user="1000")
    suites = ("tests/http/test_chat.py", "tests/http/test_auth.py")
    said = run(image, source, tmp_path / "tmp", *suites, user="1000")
    assert " passed" in said

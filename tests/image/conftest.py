"""The image under test: ``pytest tests/image --image DIRECTORY``, see deploy/image/test.sh."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.image.container import Container, Image

MakeContainer = Callable[..., Container]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--image", type=Path, help="Directory that deploy/image/build.sh filled.")


@pytest.fixture(scope="session")
def image(request: pytest.FixtureRequest) -> Image:
    directory: Path | None = request.config.getoption("--image", None)
    if directory is None:
        pytest.skip("needs the built image: make image-test")
    return Image(directory)


@pytest.fixture
def make_container(image: Image, tmp_path: Path) -> Iterator[MakeContainer]:
    """Make containers; they share ``tmp_path``'s volumes unless told otherwise."""
    made: list[Container] = []

    def make(settings: dict[str, str] | None = None, *, uid: int = 1000) -> Container:
        container = Container(image, tmp_path, settings, uid=uid)
        made.append(container)
        return container

    yield make
    for container in made:
        if container.process is not None and container.process.poll() is None:
            container.kill()


@pytest.fixture(scope="module")
def running(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """One container for the tests that only look."""
    container = Container(image, tmp_path_factory.mktemp("running"))
    container.start()
    yield container
    container.stop()

"""Tools of other packages: the documented example is installed as anybody would, and used."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from host.tools.without_sandbox import installed_tools
from shared.errors import Misconfigured
from tests.http.conftest import configure
from tests.running import new_host, running_model

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "tools" / "dice"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that the example was installed into by pip, without a network."""
    target = tmp_path_factory.mktemp("site")
    options = ("-q", "--no-index", "--no-deps", "--no-build-isolation", "--target", str(target))
    command = [sys.executable, "-m", "pip", "install", *options, str(EXAMPLE)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def test_the_tool_of_a_package_is_offered_and_called(installed: Path, tmp_path: Path) -> None:
    with running_model() as model:
        host = new_host(tmp_path / "host", model.url, {"PYTHONPATH": str(installed)})
        configure(host, tools={"plugins": {"dice": {"sides": 1}}}).start()
        try:
            with host.client() as client:
                steps = [{"tools": [{"name": "roll_dice", "input": {}}]}, {"text": "it says $results"}]
                said = f"@@model {json.dumps({'steps': steps})}"
                answer = client.post("/chat", json={"message": said}).json()
            assert answer["status"] == "success", answer
            assert answer["result"] == "it says 1"
            (offered,) = (
                tool for tool in model.requests()[0]["body"]["tools"] if tool["name"] == "roll_dice"
            )
            assert offered["description"] == "Roll a die with 1 sides."
        finally:
            host.kill()


def test_a_tool_that_no_package_offers_is_named() -> None:
    with pytest.raises(Misconfigured, match=r"tools\.plugins\.dices: no installed package offers tools"):
        installed_tools({"dices": {}})

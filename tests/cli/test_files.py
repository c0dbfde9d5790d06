"""``picoclaw files`` against a running host."""

from __future__ import annotations

import json
import os
import subprocess
from io import FileIO
from pathlib import Path

from host.cli.client import HostClient, Target
from tests.cli.running import picoclaw
from tests.running import TOKEN, running_host, running_model


class Growing(FileIO):
    """A file that somebody writes to while it is read."""

    def read(self, size: int | None = -1) -> bytes:
        with Path(str(self.name)).open("ab") as log:
            log.write(b"more")
        return super().read(-1 if size is None else size)


def test_a_file_goes_there_and_comes_back(tmp_path: Path) -> None:
    content = os.urandom(2_000_000)
    (tmp_path / "two words.bin").write_bytes(content)
    with running_model() as model, running_host(tmp_path / "host", model.url) as host:
        extra = {"API_TOKEN": TOKEN, "PICOCLAW_URL": host.url}

        def files(*words: str) -> subprocess.CompletedProcess[str]:
            return picoclaw(tmp_path, "files", *words, **extra)

        sent = files("put", str(tmp_path / "two words.bin"), "data/", "--json")
        assert json.loads(sent.stdout)["path"] == "data/two words.bin"
        listed = files("ls", "data/")
        assert ("2,000,000" in listed.stdout, listed.stderr) == (True, "")
        (Path(host.environment["MEMORY_DIR"]) / "data/\udcff").write_bytes(b"")
        assert "not everything could be listed" in files("ls", "data/").stderr
        assert files("get", "data/two words.bin", str(tmp_path / "back")).returncode == 0
        assert (tmp_path / "back").read_bytes() == content
        (tmp_path / "text").write_text("a line\n")
        assert files("put", str(tmp_path / "text"), "data/").returncode == 0
        assert files("get", "data/text", "-").stdout == "a line\n"
        assert not (tmp_path / "-").exists()
        (tmp_path / "\udcff").write_bytes(b"")
        assert "path: must be UTF-8" in files("put", str(tmp_path / "\udcff")).stderr
        missing = files("get", "data/none", str(tmp_path / "none"))
        assert (missing.returncode != 0, "data/none" in missing.stderr) == (True, True)
        assert not list(tmp_path.glob("none*"))
        (tmp_path / "text.part").write_text("mine")
        assert files("get", "data/text", str(tmp_path / "text")).returncode == 0
        assert (tmp_path / "text.part").read_text() == "mine"
        longest = "x" * 255
        (tmp_path / longest).write_text("long")
        assert files("put", str(tmp_path / longest)).returncode == 0
        assert files("get", longest, str(tmp_path)).returncode == 0
        assert "data" in files("rm", "data").stderr
        assert files("rm", "-r", "data").returncode == 0
        assert json.loads(files("ls", "data", "--json").stdout) == []


def test_a_pipe_is_sent_to_its_end_and_a_file_as_long_as_it_was(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.write(write, b"piped")
    os.close(write)
    with running_model() as model, running_host(tmp_path / "host", model.url) as host:
        extra = {"API_TOKEN": TOKEN, "PICOCLAW_URL": host.url}
        sent = picoclaw(tmp_path, "files", "put", f"/dev/fd/{read}", "from-pipe", "--json", **extra)
        assert (sent.returncode, json.loads(sent.stdout)["size"]) == (0, 5)
        made_up = picoclaw(tmp_path, "files", "put", "/proc/version", "version", **extra)
        assert made_up.returncode == 0
        got = picoclaw(tmp_path, "files", "get", "version", "-", **extra).stdout
        (tmp_path / "log").write_bytes(b"line")
        with Growing(str(tmp_path / "log")) as log, HostClient(Target(host.url, TOKEN)) as client:
            assert client.send("/chat/main/files/log", log)["size"] == 4
    os.close(read)
    assert got == Path("/proc/version").read_text()


def test_a_path_out_of_a_workspace_names_nothing_else_of_the_host(tmp_path: Path) -> None:
    with (
        running_model() as model,
        running_host(tmp_path / "host", model.url) as host,
        host.client() as client,
    ):
        conversation = client.post("/chat", json={"message": "hi"}).json()["conversation_id"]
        extra = {"API_TOKEN": TOKEN, "PICOCLAW_URL": host.url}
        for words in (
            ["files", "rm", f"../../{conversation}"],
            ["files", "rm", f"./../../{conversation}"],
            ["files", "ls", "--conversation", ".."],
            ["principal", "show", ".."],
            ["mcp", "logout", f"../../chat/{conversation}"],
            ["files", "get", ""],
            ["files", "get", "/"],
            ["files", "rm", "data/"],
            ["runs", "show", ""],
        ):
            assert picoclaw(tmp_path, *words, **extra).returncode == 1
        refused = picoclaw(tmp_path, "files", "rm", f"../../{conversation}", **extra)
        assert "must not contain . or .." in refused.stderr
        assert client.get(f"/chat/{conversation}").status_code == 200

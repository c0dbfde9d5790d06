"""Containers of the built image, run by buildah with chroot isolation on a root that cannot be written."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import psutil

from tests.running import STOP_S, TOKEN, HostProcess, free_port

ROOT: Final = Path(__file__).parents[2]
SETTINGS: Final = {"API_TOKEN": TOKEN, "TZ": "UTC", "STOP_GRACE_MS": "3000", "HOST": "127.0.0.1"}

# The root is bound onto itself and made read-only in a mount namespace that ends with the container. buildah
# stumbles over that when it clears up, so the exit code is left in a file.
READ_ONLY: Final = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && shift && exec "$@"'
KEEP_CODE: Final = '"$@"; code=$?; echo $code >/tmp/exit-code; exit $code'


@dataclass(frozen=True)
class Image:
    """What deploy/image/build.sh made in ``directory``, with ``packages`` of Debian added."""

    directory: Path
    packages: tuple[str, ...] = ()

    def buildah(self, *arguments: str) -> str:
        """Return what a buildah command says."""
        done = subprocess.run(
            [*self._buildah, *arguments], capture_output=True, text=True, env=self.environment, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    @property
    def environment(self) -> dict[str, str]:
        """buildah's own."""
        return {"PATH": os.environ["PATH"], "HOME": "/root", "TMPDIR": str(self.directory / "tmp")}

    @cached_property
    def config(self) -> dict[str, Any]:
        """The image's configuration, as Docker writes it."""
        said = json.loads(self.buildah("inspect", "--type", "image", "localhost/picoclaw"))
        config: dict[str, Any] = said["Docker"]["config"]
        return config

    @cached_property
    def container(self) -> str:
        """A container of it."""
        container = self.buildah("from", "localhost/picoclaw")
        # Volumes that an image declares are buildah's own directories, whatever -v says.
        declared = [part for path in self.config["Volumes"] for part in ("--volume", f"{path}-")]
        self.buildah("config", *declared, container)
        if self.packages:
            install = f"apt-get install -y -qq --no-install-recommends {' '.join(self.packages)}"
            inside = ("sh", "-c", f"apt-get update -qq && {install}")
            self.buildah("run", "--isolation", "chroot", "--user", "root", container, "--", *inside)
        return container

    @cached_property
    def root(self) -> Path:
        """Its file system."""
        root = Path(self.buildah("mount", self.container))
        (root / "run/.containerenv").touch()
        return root

    @cached_property
    def base_root(self) -> Path:
        """The file system of the base."""
        return Path(self.buildah("mount", self.buildah("from", "localhost/base")))

    def command(
        self,
        *command: str,
        volumes: dict[Path, str],
        settings: dict[str, str] | None = None,
        user: str | None = None,
    ) -> tuple[str, ...]:
        """Return the command that runs ``command``, the image's own by default, in a container."""
        options = [part for source, target in volumes.items() for part in ("-v", f"{source}:{target}")]
        for name, value in (settings or {}).items():
            options += ["--env", f"{name}={value}"]
        if user is not None:
            options += ["--user", user]
        run = [*self._buildah, "run", "--isolation", "chroot", *options, self.container, "--"]
        inside = ["sh", "-c", KEEP_CODE, "_", *(command or self.config["Cmd"])]
        return ("unshare", "-m", "bash", "-c", READ_ONLY, "_", str(self.root), *run, *inside)

    @property
    def _buildah(self) -> list[str]:
        storage, state = self.directory / "storage", self.directory / "run"
        return ["buildah", "--root", str(storage), "--runroot", str(state)]


class Container(HostProcess):
    """The image's main process on volumes below ``root``, which stay when it ends."""

    def __init__(
        self, image: Image, root: Path, settings: dict[str, str] | None = None, *, uid: int = 1000
    ) -> None:
        super().__init__(root, image.environment)
        self.image = image
        self.uid = uid
        self.volumes = {root / name: target for name, target in VOLUMES.items()}
        for path in self.volumes:
            path.mkdir(parents=True, exist_ok=True)
            os.chown(path, uid, uid)
        (root / "tmp").chmod(0o1777)
        self.port = free_port()
        self.settings = {**SETTINGS, "PORT": str(self.port), **(settings or {})}
        user = None if uid == 1000 else f"{uid}:{uid}"
        self.command = image.command(volumes=self.volumes, settings=self.settings, user=user)

    def run(self, *command: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a second container with the same volumes, as ``docker exec`` would."""
        whole = self.image.command(*command, volumes=self.volumes, settings={**self.settings, **settings})
        done = subprocess.run(
            whole, capture_output=True, text=True, env=self.environment, check=False, timeout=60
        )
        done.returncode = self.exit_code
        return done

    @property
    def exit_code(self) -> int:
        """What the last command in a container ended with."""
        return int((self.root / "tmp/exit-code").read_text())

    def supervisor(self) -> psutil.Process:
        """Return the main process."""
        return self.find("supervise")

    def find(self, last: str) -> psutil.Process:
        """Return the process whose command line ends so."""
        for process in reversed(self.tree()):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.cmdline()[-1:] == [last]:
                    return process
        raise LookupError(f"no process {last}: {self.log_text[-3000:]}")

    def stop(self) -> int:
        """End it as a container engine does; return the image's exit code."""
        self.supervisor().terminate()
        return self.wait()

    def wait(self) -> int:
        """Return the exit code when it has ended."""
        assert self.process is not None
        self.process.wait(STOP_S)
        return self.exit_code


VOLUMES: Final = {"store": "/data/store", "memory": "/data/memory", "tmp": "/tmp"}

"""Whatever the files hold: settings, or one sentence that names the file and never a value."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared.settings import SettingsError, load
from shared.settings.leaves import leaves
from tests.settings.patience import patient

CANARY = "canary0123456789"

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.just(CANARY),
    st.just("enc://" + CANARY),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)
PATHS = st.sampled_from([leaf.path[:end] for leaf in leaves() for end in range(1, len(leaf.path) + 1)])
SECRET_PATHS = st.sampled_from(
    [
        ("api_token",),
        ("channels", "telegram"),
        ("channels", "telegram", "token"),
        ("channels", "telegram", "settings"),
        ("model_list",),
        ("model_list", "default"),
        ("model_list", "default:0", "api_keys"),
        ("tools", "mcp", "servers", "github"),
        ("tools", "mcp", "servers", "github", "env"),
        ("tools", "mcp", "servers", "github", "headers", "X"),
    ]
)


def tree_with(path: tuple[str, ...], value: Any) -> Any:
    for step in reversed(path):
        value = {step: value}
    return value


def outcome(config: bytes | None, security: bytes | None) -> str:
    """Load a home with these files; return the sentence of the fault, or what the warnings say."""
    with tempfile.TemporaryDirectory() as home:
        for name, content in (("config.json", config), (".security.yml", security)):
            if content is not None:
                (Path(home) / name).write_bytes(content)
                (Path(home) / name).chmod(0o600)
        prefixes: tuple[str, ...] = ("",)
        try:
            said = "\n".join(load({"HOME": home, "PICOCLAW_HOME": home}).warnings)
        except SettingsError as fault:
            said = str(fault)
            prefixes = (home, "The settings hold")
        assert said.startswith(prefixes)
    assert CANARY not in said
    return said


@patient
@given(st.binary(max_size=60))
@example(b"\xef\xbb\xbf{}")
@example(b"[" * 5000)
@example(b'{"a":' * 3000)
@example(b'{"gateway": {"port": 1e999}}')
@example(b'{"heartbeat": {"interval": 123456789012345678901234567890}}')
def test_any_bytes_as_config_json(content: bytes) -> None:
    outcome(content, None)


@patient
@given(
    st.one_of(
        st.binary(max_size=60), st.text(alphabet="a:{}[]&*!-#|>'\"%@ \n\t?,~0.", max_size=40).map(str.encode)
    )
)
@example(b"[" * 1000)
@example(b"? a\n: !!python/object/apply:os.system [canary0123456789]")
@example(b"a: !!binary x")
@example(b"<<: *a")
@example(b"a: &a [*a]")
@example(b"%YAML 9.9\n---\n")
@example(b"a: 2026-99-99")
@example(b"--- 1\n--- 2")
def test_any_bytes_as_security_yml(content: bytes) -> None:
    outcome(None, content)


@patient
@given(PATHS, VALUES)
def test_any_value_at_any_key_of_config_json(path: tuple[str, ...], value: Any) -> None:
    outcome(
        json.dumps(tree_with(path, value), allow_nan=False, default=str).encode() if _finite(value) else None,
        None,
    )


@patient
@given(SECRET_PATHS, VALUES)
def test_any_value_at_any_key_of_security_yml(path: tuple[str, ...], value: Any) -> None:
    config = {
        "model_list": [{"model_name": "default", "model": "m"}],
        "tools": {"mcp": {"servers": {"github": {"url": "https://x"}}}},
    }
    security = json.dumps(tree_with(path, value)) if _finite(value) else None
    outcome(json.dumps(config).encode(), security.encode() if security else None)


@patient
@given(st.sampled_from([name for leaf in leaves() for name in leaf.env]), st.text(max_size=20))
def test_any_text_in_any_variable(name: str, text: str) -> None:
    if name in ("PICOCLAW_HOME", "PICOCLAW_CONFIG") or "\0" in text:
        return
    with tempfile.TemporaryDirectory() as home:
        said = name
        try:
            load({"HOME": home, "PICOCLAW_HOME": home, name: text})
        except SettingsError as fault:
            said = str(fault)
        assert said.startswith((name, "The settings hold"))


def _finite(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


NO_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a directory": (Path.mkdir, "is not a regular file"),
    "a pipe": (os.mkfifo, "is not a regular file"),
    "a link to a device": (lambda path: path.symlink_to("/dev/zero"), "is not a regular file"),
    "a link to itself": (lambda path: path.symlink_to(path), "cannot be read"),
    "a socket": (make_socket, "cannot be read"),
    "a huge file": (lambda path: path.write_bytes(b" " * ((1 << 20) + 1)), "is larger than 1 MiB"),
    "other bytes": (lambda path: path.write_bytes(b"# x\n\xff"), "line 2: is not UTF-8 text"),
}


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("name", ["config.json", ".security.yml"])
def test_what_is_no_settings_file_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    make, said = NO_FILES[kind]
    monkeypatch.chdir(tmp_path)
    make(Path(name))
    with pytest.raises(SettingsError) as caught:
        load({"HOME": str(tmp_path), "PICOCLAW_HOME": str(tmp_path)})
    assert str(caught.value).startswith(str(tmp_path / name))
    assert said in str(caught.value)


def test_a_link_to_a_good_file_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text('{"gateway": {"port": 9009}}')
    (tmp_path / "config.json").symlink_to("real.json")
    assert load({"HOME": str(tmp_path), "PICOCLAW_HOME": str(tmp_path)}).port == 9009

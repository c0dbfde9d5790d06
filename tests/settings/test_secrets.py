from __future__ import annotations

import base64
import hashlib
import hmac
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from shared.secrets import Sealer, SecretFault, SecretReader, unseal
from tests.settings.patience import patient

SEALER = Sealer("open sesame")


def fault_of(reader: SecretReader, text: str) -> str:
    with pytest.raises(SecretFault) as caught:
        reader.read(text)
    return str(caught.value)


@patient
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_what_was_sealed_is_unsealed(value: str) -> None:
    assert unseal(SEALER.seal(value), "open sesame") == value


def test_sealing_twice_gives_different_texts_and_hides_the_value() -> None:
    first, second = SEALER.seal("canary"), SEALER.seal("canary")
    assert first != second
    assert b"canary" not in base64.b64decode(first.removeprefix("enc://"))


@patient
@given(st.integers(min_value=20 * 8, max_value=50 * 8))
def test_a_changed_bit_behind_the_header_is_noticed(bit: int) -> None:
    blob = bytearray(base64.b64decode(SEALER.seal("canary").removeprefix("enc://")))
    blob[bit // 8] ^= 1 << bit % 8
    with pytest.raises(SecretFault):
        unseal("enc://" + base64.b64encode(blob).decode(), "open sesame")


@patient
@given(st.binary(max_size=80))
def test_junk_is_a_fault_and_costs_nothing(blob: bytes) -> None:
    with pytest.raises(SecretFault):
        unseal("enc://" + base64.b64encode(b"\xff" + blob).decode(), "x")


@pytest.mark.parametrize(
    "header", [b"\x01\x18\x20\x04", b"\x01\x1f\x08\x01", b"\x01\x00\x08\x01", b"\x02\x0f\x08\x01"]
)
def test_parameters_that_would_eat_the_machine_are_refused(header: bytes) -> None:
    with pytest.raises(SecretFault):
        unseal("enc://" + base64.b64encode(header + bytes(60)).decode(), "x")


def test_an_empty_passphrase_seals_nothing() -> None:
    with pytest.raises(SecretFault):
        Sealer("")


def test_files_are_read_from_the_config_directory_alone(tmp_path: Path) -> None:
    inside = tmp_path / "config"
    inside.mkdir()
    (tmp_path / "outside").write_text("canary")
    (inside / "key").write_text("\ufeffvalue\r\n")
    (inside / "empty").write_text("\n")
    (inside / "binary").write_bytes(b"\xff\xfe")
    (inside / "huge").write_bytes(b"x" * 70_000)
    (inside / "link-in").symlink_to("key")
    (inside / "link-out").symlink_to(tmp_path / "outside")
    (inside / "loop").symlink_to("loop")
    os.mkfifo(inside / "pipe")
    reader = SecretReader({}, inside)
    assert reader.read("file://key") == "value"
    assert reader.read("file://link-in") == "value"
    for name in ("../outside", "link-out", str(tmp_path / "outside")):
        assert fault_of(reader, f"file://{name}") == "the file it names is not in the config directory"
    for name in ("empty", "binary", "huge", "loop", "pipe", "", "absent", "nul\0"):
        assert "canary" not in fault_of(reader, f"file://{name}")


def test_variables_that_are_not_set_are_a_fault(tmp_path: Path) -> None:
    reader = SecretReader({"SET": "value", "EMPTY": ""}, tmp_path)
    assert reader.read("env://SET") == "value"
    assert reader.names == {"SET"}
    for name in ("EMPTY", "ABSENT", ""):
        assert fault_of(reader, f"env://{name}") == "the environment variable it names is not set"


def test_a_value_that_sipeed_picoclaw_sealed_is_read(tmp_path: Path) -> None:
    key = tmp_path / "picoclaw_ed25519.key"
    key.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nnot a real one\n")
    sealed = sipeed_seal("sk-theirs", "open sesame", key.read_bytes())
    environ = {"PICOCLAW_KEY_PASSPHRASE": "open sesame", "PICOCLAW_SSH_KEY_PATH": str(key)}
    assert SecretReader(environ, tmp_path).read(sealed) == "sk-theirs"
    key.rename(tmp_path / "moved")
    assert "PICOCLAW_SSH_KEY_PATH" in fault_of(SecretReader(environ, tmp_path), sealed)
    (tmp_path / ".ssh").mkdir()
    (tmp_path / "moved").rename(tmp_path / ".ssh" / key.name)
    home = {"PICOCLAW_KEY_PASSPHRASE": "open sesame", "HOME": str(tmp_path)}
    assert SecretReader(home, tmp_path).read(sealed) == "sk-theirs"
    other = SecretReader({**home, "PICOCLAW_KEY_PASSPHRASE": "x"}, tmp_path)
    assert "passphrase or SSH key" in fault_of(other, sealed)


def sipeed_seal(value: str, passphrase: str, ssh_key: bytes) -> str:
    """Seal as sipeed/picoclaw documents it, by the standard library's parts."""
    salt, nonce = os.urandom(16), os.urandom(12)
    material = hmac.digest(hashlib.sha256(ssh_key).digest(), passphrase.encode(), "sha256")
    first = hmac.digest(salt, material, "sha256")  # RFC 5869: extract, then expand once
    key = hmac.digest(first, b"picoclaw-credential-v1\x01", "sha256")
    return (
        "enc://" + base64.b64encode(salt + nonce + AESGCM(key).encrypt(nonce, value.encode(), None)).decode()
    )


def test_variables_stand_anywhere_in_a_text(tmp_path: Path) -> None:
    reader = SecretReader({"TOKEN": "value", "EMPTY": ""}, tmp_path)
    assert reader.read("Bearer ${TOKEN}") == "Bearer value"
    assert reader.read("${EMPTY:-other}${ABSENT:-}") == "other"
    assert reader.read("$TOKEN ${} ${1} $${x y}") == "$TOKEN ${} ${1} $${x y}"
    assert fault_of(reader, "a ${ABSENT}") == "the environment variable ABSENT is not set"

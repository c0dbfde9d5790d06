from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest
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
    (inside / "key").write_text("value\n")
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

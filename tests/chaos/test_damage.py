"""Two thousand damages and refused calls, each on a volume with three generations (tests/store/damage.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from tests.examples import examples
from tests.store.damage import Fault, Refusal, faults, grow_generations, outlasts, refusals, survives

pytestmark = pytest.mark.slow
many = settings(max_examples=examples(1000), suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return grow_generations(tmp_path_factory.mktemp("generations"))


@many
@given(fault=faults)
def test_a_thousand_damages_lose_nothing_in_silence(grown: Path, fault: Fault) -> None:
    survives(grown, fault)


@many
@given(refusal=refusals)
def test_a_thousand_calls_that_fail_lose_nothing(grown: Path, refusal: Refusal) -> None:
    outlasts(grown, refusal)

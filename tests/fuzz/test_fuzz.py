"""Hostile and broken input, for a bounded number of examples; ``python -m tests.fuzz.run`` runs as long as asked.

Any content of any file gives a result or a CiodError with a message.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ciod.core.errors import CiodError
from tests.fuzz.mutate import mutate
from tests.fuzz.targets import TARGETS, corpus, model_bytes

EXAMPLES = {"model": 15, "checkpoint": 25}
HARD = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


def outcome(name: str, content: bytes) -> str:
    with tempfile.TemporaryDirectory() as folder:
        try:
            TARGETS[name].run(content, Path(folder))
        except CiodError as e:
            assert str(e).strip(), "an error has a sentence"
            return str(e)
        return ""


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_found_before(name):
    good, *found = corpus(name)
    refusal = outcome(name, good)
    assert not refusal or name in ("checkpoint", "settings", "words"), (
        "the first seed is good input, but for absent files"
    )
    for content in found:
        outcome(name, content)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.filterwarnings("ignore")
def test_broken_input(name):
    known = corpus(name)
    broken = st.builds(lambda c, r: mutate(c, r, known), st.sampled_from(known), st.randoms(use_true_random=False))

    @settings(max_examples=EXAMPLES.get(name, 40), deadline=None, derandomize=True, database=None,
              suppress_health_check=HARD)  # fmt: skip
    @given(st.one_of(broken, broken, broken, st.binary(max_size=64), st.text(max_size=64).map(str.encode)))
    def check(content: bytes) -> None:
        outcome(name, content)

    check()


def test_the_mutations_do_what_they_say():
    rng, good = Random(0), model_bytes()
    made = {mutate(good, rng) for _ in range(20)}
    assert len(made) > 15 and good not in made

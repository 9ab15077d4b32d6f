"""What runs for long says all it knows in one place."""

from __future__ import annotations

import pytest

from ciod.extension.run import Extension
from ciod.runs.run import Runner
from ciod.training.loop import Fit


@pytest.mark.parametrize("kind", [Runner, Extension, Fit])
def test_an_attribute_that_is_not_declared_cannot_be_set(kind):
    with pytest.raises(AttributeError):
        object.__new__(kind).another = 1

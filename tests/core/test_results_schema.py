"""results.json: what is written has the fields that are read."""

from __future__ import annotations

import pytest

from ciod.core import results_schema as written
from ciod.report import results_file as read


@pytest.mark.parametrize(
    ("entry", "model"),
    [
        (written.ScenarioEntry, read.Scenario),
        (written.DetectorEntry, read.Detector),
        (written.MethodEntry, read.Method),
        (written.TaskEntry, read.Task),
        (written.ResultsFile, read.File),
    ],
    ids=lambda v: v.__name__,
)
def test_written_and_read_fields_are_the_same(entry, model):
    assert set(entry.__annotations__) - {"format"} == set(model.model_fields) - {"format"}

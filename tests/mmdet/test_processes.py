"""Several processes: the adapter's models average what they divide losses by over all of them, as MMDetection does."""

from __future__ import annotations

import pytest

from ciod.data.shapes.scenes import write_shapes
from tests.mmdet import common
from tests.runs.commands import assert_one_equals_two


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "method"), [("yolox", "ilyolox"), ("gfl", "erd"), ("retinanet", "pseudo_label"), ("atss", "lwf")]
)
def test_one_process_of_four_equals_two_of_two(name, method, tmp_path):
    data = write_shapes(tmp_path / "shapes", train=12, val=6, size=64)
    config = tmp_path / f"small_{name}.py"
    config.write_text(f"model = { {k: v for k, v in common.config(name).items() if k != 'input'}!r}")
    words = ["split=6+4", "size=64", "epochs=2", "batch=4", "log_every=1", "warmup=1", f"method={method}"]
    assert_one_equals_two(data, tmp_path, [*words, f"detector=mmdet:{config}"])

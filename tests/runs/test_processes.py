"""Several processes give what one gives."""

from __future__ import annotations

import pytest
import torch

from ciod.core.distributed import World
from ciod.core.errors import CiodError
from tests.runs.commands import WORDS, assert_one_equals_two


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed")
def test_one_process_of_four_equals_two_of_two(data, tmp_path):
    assert_one_equals_two(data, tmp_path, WORDS)


def test_shares_of_the_test_images():

    for n in (0, 1, 5, 12):
        for size in (1, 2, 3, 7):
            shares = [World(r, size).share(n) for r in range(size)]
            assert [i for s in shares for i in s] == list(range(n))


def test_a_device_that_does_not_exist():
    from ciod.core.distributed import pick_device

    with pytest.raises(CiodError, match="device: 'gpu' is not a device; allowed: auto, cpu, cuda, cuda:N"):
        pick_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(CiodError, match="sees no GPU here; use device=auto or device=cpu"):
            pick_device("cuda")
        assert pick_device("auto").type == "cpu"

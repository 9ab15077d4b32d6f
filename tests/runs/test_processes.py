"""Several processes give what one gives."""

from __future__ import annotations

import pytest
import torch

from ciod.core.distributed import World, pick_device
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
    with pytest.raises(CiodError, match="device: 'gpu' is not a device; allowed: auto, cpu, cuda, cuda:N"):
        pick_device("gpu")
    for name in ("meta", "xpu", "hpu", "privateuseone"):
        with pytest.raises(CiodError, match=rf"device: {name} is a device that ciod does not use; allowed: auto, cpu"):
            pick_device(name)
    if not torch.cuda.is_available():
        with pytest.raises(CiodError, match="finds no GPU; use device=auto or device=cpu"):
            pick_device("cuda")
        assert pick_device("auto").type == "cpu"


def test_a_gpu_that_does_not_exist(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(CiodError, match="device: there is no cuda:99; the last of the 2 GPUs here is cuda:1"):
        pick_device("cuda:99")

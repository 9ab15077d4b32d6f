"""The vectorised head mathematics against the same formulas written out with loops over images and objects."""

from __future__ import annotations

import pytest
import torch

from benchmarks import head, reference, scenes


@pytest.mark.parametrize("seed", range(4))
def test_a_step_of_ilyolox_is_the_formulas(seed: int):
    student, teacher, real = scenes.scene(images=3, size=160, classes=9, old=5, objects=6, real=3, seed=seed)
    real.valid[1] = False  # an image without boxes
    real.valid[2, 1:] = False
    method = head.vectorised(old=5)
    ours, theirs = scenes.trained(student), scenes.trained(student)
    found = method.losses(ours, teacher, method.choose(teacher), real)
    expected = reference.step(theirs, teacher, real, old=5)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert value.item() > 0, f"the scene has nothing to say about {name}"
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    torch.stack(list(found.values())).sum().backward()
    torch.stack(list(expected.values())).sum().backward()
    for name in ("logits", "boxes", "objectness"):
        a, b = getattr(ours, name).grad, getattr(theirs, name).grad
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * b.abs().max().item(), msg=lambda m, n=name: f"{n}: {m}")


def test_the_scene_is_as_large_as_the_paper():
    """About 750 kept positions in a batch of 8, as the published implementation was measured with."""
    _, teacher, _ = scenes.scene()
    kept = head.vectorised(old=40).choose(teacher)
    assert 600 < int(kept.valid.sum()) < 900


def test_the_head_benchmark_runs(tmp_path, capsys, monkeypatch):
    words = "head --images 2 --size 96 --classes 6 --old 3 --objects 4 --rounds 1 --threads 1 --json"
    monkeypatch.setattr("sys.argv", [*words.split(), str(tmp_path / "a.json")])
    head.main()
    assert "times as fast" in capsys.readouterr().out
    assert (tmp_path / "a.json").exists()

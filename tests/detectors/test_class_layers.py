"""Class layers on vectors, and the rows that choose the queries of an encoder."""

from __future__ import annotations

import torch

from ciod.detectors.layers.class_layers import ClassLinear, RankedLinear


def test_a_linear_class_layer_grows_by_blocks_and_keeps_its_logits():
    torch.manual_seed(0)
    layer, x = ClassLinear(8, 2), torch.randn(3, 5, 8)
    before = layer(x)
    layer.grow(3)
    assert layer.sizes == [2, 3] and layer(x).shape == (3, 5, 5)
    assert torch.equal(layer(x)[..., :2], before)
    assert [(r.name, r.first, tuple(r.tensor.shape)) for r in layer.rows("cls")] == [
        ("cls.blocks.0.weight", 0, (2, 8)),
        ("cls.blocks.0.bias", 0, (2,)),
        ("cls.blocks.1.weight", 2, (3, 8)),
        ("cls.blocks.1.bias", 2, (3,)),
    ]
    whole = layer(x)
    layer.select([1, 2, 4])
    assert layer.sizes == [1, 2]
    torch.testing.assert_close(layer(x), whole[..., [1, 2, 4]])


def test_without_classes_there_are_no_logits_and_nothing_to_choose_by():
    layer = RankedLinear(8, 0)
    logits = layer(torch.ones(2, 4, 8))
    assert logits.shape == (2, 4, 0) and torch.equal(layer.best(logits), torch.zeros(2, 4))


def test_an_untrained_row_chooses_nothing_in_evaluation():
    layer = RankedLinear(4, 2).eval()
    logits = torch.tensor([[0.1, 0.2, 9.0], [0.4, 0.3, -9.0]])
    layer.grow(1)
    assert layer.best(logits).tolist() == logits[:, :2].amax(1).tolist()
    layer.grow(1)
    assert int(layer.ranking) == 2, "the third row was not trained either"
    layer.train()
    assert layer.best(logits).tolist() == logits.amax(1).tolist()
    layer.eval()
    assert layer.best(logits).tolist() == logits.amax(1).tolist(), "train and eval mode choose by the same rows"


def test_the_first_classes_choose_though_none_is_older():
    layer = RankedLinear(4, 0).eval()
    layer.grow(2)
    assert layer.best(torch.tensor([1.0, 3.0])) == 3
    layer.grow(1)
    assert layer.best(torch.tensor([1.0, 3.0, 9.0])) == 3


def test_selected_rows_choose_as_before():
    layer = RankedLinear(4, 3).eval()
    layer.grow(2)
    layer.select([0, 2, 4])
    assert int(layer.ranking) == 2 and layer.best(torch.tensor([1.0, 3.0, 9.0])) == 3

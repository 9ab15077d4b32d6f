"""Outputs of the parts of a batch are joined field by field."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from ciod.core.types import OF_POSITIONS, Outputs


def outputs(images: int) -> Outputs:
    """Every field filled, with other numbers for every image."""
    row = torch.arange(images, dtype=torch.float32)

    def each(*shape: int) -> torch.Tensor:
        return row.view(-1, *[1] * len(shape)) + torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))

    return Outputs(
        logits=each(6, 3),
        boxes=each(6, 4),
        points=torch.rand(6, 2),
        strides=torch.full((6,), 8.0),
        objectness=each(6),
        distribution=each(6, 4, 5),
        features=[each(7, 2, 2), each(7, 1, 1)],
        towers=[each(9, 2, 2)],
        levels=(4, 2),
        anchors=torch.rand(6, 4),
        deltas=each(6, 4),
        coarse=each(6, 4),
        root=True,
        answers=2,
        frame=(64, 32),
        refs=each(6, 4),
        asked=each(5),
        starts=each(5, 4),
        memory=each(7, 3),
        shapes=((2, 2), (1, 3)),
        first=each(7, 3),
        states=each(5, 3),
        near=each(8, 2, 2),
    )


@pytest.mark.parametrize("sizes", [(2, 2), (1, 3), (4,)])
def test_parts_joined_are_the_whole(sizes: tuple[int, ...]):
    whole = outputs(4)
    assert all(getattr(whole, f.name) is not None for f in fields(Outputs)), "a field was added: fill it here"

    def cut(value, first: int, size: int):
        return [v[first : first + size] for v in value] if isinstance(value, list) else value[first : first + size]

    parts, first = [], 0
    for size in sizes:
        given = {
            f.name: getattr(whole, f.name) if f.name in OF_POSITIONS else cut(getattr(whole, f.name), first, size)
            for f in fields(Outputs)
        }
        parts.append(Outputs(**given))
        first += size
    joined = Outputs.joined(parts)
    for f in fields(Outputs):
        found, wanted = getattr(joined, f.name), getattr(whole, f.name)
        if isinstance(wanted, (torch.Tensor, list)):
            torch.testing.assert_close(found, wanted, rtol=0, atol=0)
        else:
            assert found == wanted

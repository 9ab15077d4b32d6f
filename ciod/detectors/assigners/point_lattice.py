"""A detector's positions as one lattice per level. Rows and columns show which positions are in or near a box."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Level(NamedTuple):
    """Positions ``first`` + row * len(x) + column, at (x[column], y[row])."""

    first: int
    x: Tensor  # [W] pixels, ``stride`` apart
    y: Tensor  # [H]
    stride: float


def levels_of(points: Tensor, strides: Tensor) -> list[Level] | None:
    """The levels of [P, 2] points with [P] strides, on a CPU; None if they do not form lattices."""
    p, s = points.numpy(), strides.numpy()
    starts = [0, *(np.flatnonzero(np.diff(s)) + 1), len(s)]
    found = []
    for first, end in pairwise(starts):
        if end == first:
            return None
        own, stride = p[first:end], float(s[first])
        turned = np.flatnonzero(own[:, 1] != own[0, 1])
        width = int(turned[0]) if len(turned) else end - first
        if (end - first) % width:
            return None
        grid = own.reshape(-1, width, 2)
        x, y = grid[0, :, 0], grid[:, 0, 1]
        whole = np.array_equal(grid[..., 0], np.broadcast_to(x, grid.shape[:2])) and np.array_equal(
            grid[..., 1], np.broadcast_to(y[:, None], grid.shape[:2])
        )
        even = np.array_equal(x, x[0] + np.arange(width) * s[first]) and np.array_equal(
            y, y[0] + np.arange(len(y)) * s[first]
        )
        if not (whole and even):
            return None
        found.append(Level(int(first), points[first : first + width, 0], points[first:end:width, 1], stride))
    return found


class Reach(NamedTuple):
    """Positions inside [B, N] boxes, and near their centres."""

    candidate: Tensor  # [B, P] bool: in or near some box
    prime: Tensor  # [B, N, K] positions that can be in a box and near its centre
    ok: Tensor  # [B, N, K] bool: which of them are


def reach(levels: list[Level], boxes: Tensor, valid: Tensor, radius: float) -> Reach:
    """The same as comparing every position with every box [B, N, 4], but only from rows and columns.

    Args:
        valid: [B, N] bool.
        radius: a position is near a box if it is within ``radius`` cells of its centre, in x and in y.
    """
    some, prime, ok = [], [], []
    for level in levels:
        ways = [_axis(at, boxes[..., i], boxes[..., i + 2], valid, radius, level.stride)
                for at, i in ((level.x, 0), (level.y, 1))]  # fmt: skip
        (in_x, near_x, column, ok_x), (in_y, near_y, row, ok_y) = ways
        # Whether any box has both the row and the column: a product of matrices.
        covered = in_y.mT @ in_x + near_y.mT @ near_x
        some.append((covered > 0).flatten(1))
        prime.append((level.first + row[..., :, None] * len(level.x) + column[..., None, :]).flatten(2))
        ok.append((ok_y[..., :, None] & ok_x[..., None, :]).flatten(2))
    return Reach(torch.cat(some, 1), torch.cat(prime, 2), torch.cat(ok, 2))


def _axis(
    at: Tensor, low: Tensor, high: Tensor, valid: Tensor, radius: float, stride: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For one axis: inside and near [B, N, W] as numbers; the few indices [B, N, K] near the centre, and whether they
    are also inside."""
    far, middle = radius * stride, (low + high) / 2
    a, m = at, middle[..., None]
    inside = (a > low[..., None]) & (a < high[..., None]) & valid[..., None]
    near = (a + far > m) & (a - far < m) & valid[..., None]
    # In float64 these are exact: the open interval of 2 radius cells holds no index before its first integer.
    first = ((middle.double() - far - at[0].double()) / stride).floor().nan_to_num(0).clamp(-2, len(at)).long() + 1
    index = first[..., None] + torch.arange(math.ceil(2 * radius))
    held = index.clamp(0, len(at) - 1)
    ok = (index == held) & (inside & near).gather(-1, held)
    return inside.float(), near.float(), held, ok

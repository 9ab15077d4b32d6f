"""Limits of settings that several layers share."""

from __future__ import annotations

MANY = 1_000_000  # of anything that is counted: what is more is a slip of the hand, and the end of the memory
LARGEST = 16_384  # pixels along a side of the input

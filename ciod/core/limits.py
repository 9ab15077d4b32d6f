"""Limits of settings that several layers share."""

from __future__ import annotations

MANY = 1_000_000  # maximum of any count: a larger value is a typing error and would exhaust the memory
LARGEST_SEED = 2**63 - 1  # torch takes 64 bits, and seeds of tasks and processes are this one plus a little
LARGEST = 16_384  # pixels along a side of the input

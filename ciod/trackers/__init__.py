"""Trackers: what a run logs, sent to TensorBoard, Weights & Biases, MLflow or Trackio while it trains.

A tracker follows ``metrics.jsonl`` in a thread of its own. Training never waits for it, and what it raises ends the
tracker, not the run. How far it got is kept in the run folder: a resumed run continues its tracker run, and sends what
the tracker missed.
"""

from __future__ import annotations

from ciod.trackers.base import EXTRAS, Follow, Run, Tracker, absent
from ciod.trackers.tracking import Tracking

__all__ = ["EXTRAS", "Follow", "Run", "Tracker", "Tracking", "absent"]

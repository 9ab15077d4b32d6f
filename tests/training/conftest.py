"""The runs that the tests of runs look at, for those of training too."""

from __future__ import annotations

from tests.runs.conftest import data, whole

__all__ = ["data", "whole"]

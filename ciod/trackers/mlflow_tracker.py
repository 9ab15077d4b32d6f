"""MLflow. The server is that of ``MLFLOW_TRACKING_URI``, the experiment that of ``MLFLOW_EXPERIMENT_NAME``."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ciod.trackers.base import Run, flat

LONGEST = 500  # characters of a parameter; the whole settings are a file of the run


class MLflow:
    keeps_all = True

    def open(self, run: Run) -> str:
        self.entities = entities = importlib.import_module("mlflow.entities")
        self.client: Any = importlib.import_module("mlflow.tracking").MlflowClient()
        if run.id is not None:
            self.client.update_run(run.id, status="RUNNING")
            self.id = run.id
            return run.id
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "ciod")
        known = self.client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self.client.create_experiment(name)
        made = self.client.create_run(experiment, run_name=run.name, tags={"ciod.group": run.group})
        self.id = str(made.info.run_id)
        values = {k: str(v)[:LONGEST] for k, v in flat(run.config).items()}
        self.client.log_batch(self.id, params=[entities.Param(k, v) for k, v in values.items()])
        self.client.log_dict(self.id, dict(run.config), "settings.json")
        return self.id

    def log(self, values: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        metrics = [self.entities.Metric(_name(k), v, now, step) for k, v in values.items()]
        self.client.log_batch(self.id, metrics=metrics)

    def finish(self, summary: Mapping[str, Any], files: Sequence[Path], pictures: Sequence[Path]) -> None:
        self.client.log_dict(self.id, dict(summary), "summary.json")
        for file in files:
            self.client.log_artifact(self.id, str(file))
        for file in pictures:
            self.client.log_artifact(self.id, str(file), f"examples/{file.parent.parent.name}")
        self.client.set_terminated(self.id)
        self.done = True

    def close(self) -> None:
        if not self.done:
            self.client.set_terminated(self.id, status="KILLED")

    done = False


def _name(text: str) -> str:
    """A name that MLflow accepts: letters, digits and ``_-. :/``."""
    return "".join(c if c.isalnum() or c in "_-. :/" else "_" for c in text)


def make() -> MLflow:
    return MLflow()

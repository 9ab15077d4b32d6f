"""Each tracker with its own package: a run of two tasks, stopped and resumed, is one continuous run there."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from ciod.core.run_log import read_metrics
from ciod.data.shapes.scenes import write_shapes
from tests.trackers.wandb_file import records

# As by kill -9: nothing of the process runs afterwards. Windows has no such signal.
KILLED = "os.kill(os.getpid(), 9)" if os.name == "posix" else "os._exit(9)"
VARIABLES = {
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    "MLFLOW_EXPERIMENT_NAME": "tests",
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "TRACKIO_PROJECT": "tests",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("data"), train=12, val=4, size=64, seed=1)


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Each package writes below the folder of the test."""
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    return tmp_path


def stopped_and_resumed(data: Path, out: Path, tracker: str) -> Path:
    """Killed inside the second task, in a process of its own; then the same command again."""
    words = [f"log={tracker}", "save_every=1"]
    code = f"""
import os
from pathlib import Path
from tests.runs.commands import AtStep, go
go(Path({str(data)!r}), Path({str(out)!r}), *{words!r}, hooks=[AtStep(1, 3, lambda: {KILLED})])
"""
    died = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert died.returncode in (9, -9), died.stderr
    done = [sys.executable, "-c", code.replace(KILLED, "None")]
    ended = subprocess.run(done, capture_output=True, text=True, check=False)
    assert ended.returncode == 0 and "warning: log" not in ended.stdout, ended.stdout + ended.stderr
    return out


def expected(out: Path) -> dict[str, float]:
    """The last values as ``results.json`` has them."""
    results = json.loads((out / "results.json").read_text())
    last = results["tasks"][1]
    found = {f"{group}/{m}": v for group in ("old", "new", "all") for m, v in last[group].items() if v is not None}
    return found | {f"AP50/{name}": v for name, v in results["ap"]["AP50"][1].items() if v is not None}


def steps(out: Path) -> list[int]:
    """Steps over both tasks, as they should be logged: each once, in order."""
    lines = [m for m in read_metrics(out) if m["kind"] == "step"]
    first = max(m["step"] for m in lines if m["task"] == 0)
    return [m["step"] + (first if m["task"] else 0) for m in lines]


def check(found: dict[str, list[tuple[int, float]]], out: Path) -> None:
    wanted = steps(out)
    assert [s for s, _ in found["train/loss"]] == wanted == list(range(1, len(wanted) + 1))
    for name, value in expected(out).items():
        step, logged = found[name][-1]
        assert step == wanted[-1] and logged == pytest.approx(value, abs=1e-6), name


def test_tensorboard(data, places):
    loaded = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="tensorboard is absent: pip install tensorboard",
    )
    out = stopped_and_resumed(data, places / "run", "tensorboard")
    events = loaded.EventAccumulator(str(out / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    check({t: [(e.step, e.value) for e in events.Scalars(t)] for t in events.Tags()["scalars"]}, out)
    assert events.Tags()["images"], "pictures of the second task"
    assert {"settings/text_summary", "summary/text_summary"} <= set(events.Tags()["tensors"])


def test_mlflow(data, places):
    tracking = pytest.importorskip("mlflow.tracking", reason="MLflow is absent: pip install mlflow-skinny")
    out = stopped_and_resumed(data, places / "run", "mlflow")
    client = tracking.MlflowClient((places / "mlflow").as_uri())
    runs = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    assert len(runs) == 1 and runs[0].info.status == "FINISHED" and runs[0].info.run_name == "run"
    identifier = runs[0].info.run_id
    check(
        {
            name: [(m.step, m.value) for m in client.get_metric_history(identifier, name)]
            for name in runs[0].data.metrics
        },
        out,
    )
    assert runs[0].data.params["train.epochs"] == "2" and runs[0].data.params["method.name"] == "ilyolox"
    assert {"report.html", "results.json", "settings.json", "examples"} <= {
        f.path for f in client.list_artifacts(identifier)
    }


def test_trackio(data, places):
    pytest.importorskip("trackio", reason="Trackio is absent: pip install trackio")
    out = stopped_and_resumed(data, places / "run", "trackio")
    code = "import trackio, json; r = trackio.Api().runs('tests'); print(len(r), r[0].name)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert printed[0] == "1" and printed[1].startswith("run-")
    base = next((places / "trackio").glob("*.db"))
    with sqlite3.connect(base) as store:
        rows = store.execute("select step, metrics from metrics order by id").fetchall()
    found: dict[str, list[tuple[int, float]]] = {}
    for step, text in rows:
        for name, value in json.loads(text).items():
            if isinstance(value, (int, float)):
                found.setdefault(name, []).append((step, value))
    check(found, out)


def test_wandb(data, places):
    """Offline, as on a cluster; what ``wandb sync`` would send is in the files, two of one identifier."""
    protocol = pytest.importorskip("wandb.proto.wandb_internal_pb2", reason="wandb is absent: pip install wandb")
    out = stopped_and_resumed(data, places / "run", "wandb")
    found: dict[str, dict[int, float]] = {}
    identifiers = set()
    for file in sorted((out / "wandb").glob("offline-run-*/run-*.wandb"), key=os.path.getmtime):
        for record in records(file):
            message = protocol.Record()
            message.ParseFromString(record)
            if message.WhichOneof("record_type") == "run":
                identifiers.add(message.run.run_id)
            elif message.WhichOneof("record_type") == "history":
                row = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in message.history.item}
                for name, value in row.items():
                    if isinstance(value, (int, float)):
                        found.setdefault(name, {})[int(row["_step"])] = value
    assert len(identifiers) == 1, "one run on the server"
    check({name: sorted(values.items()) for name, values in found.items()}, out)

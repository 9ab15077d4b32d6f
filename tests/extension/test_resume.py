"""An interrupted extension resumes to the same result, and resuming is refused where the result would differ."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ciod import detectors
from ciod.core.errors import CiodError
from ciod.core.run_log import read_metrics
from ciod.core.signals import RunAgain
from ciod.detectors.files import weights
from ciod.extension import dry_run, effort, looked, measure, old_objects, write
from ciod.extension.run import extend
from ciod.extension.settings import load
from ciod.runs import fingerprints, lock
from ciod.runs import run as engine
from ciod.training import checkpoint
from ciod.training.hooks import Hooks
from ciod.training.progress import Reporter
from tests.data.writers import sample_index, write_coco
from tests.runs.commands import AtStep, Killed, kill_after, launch, settings

STEPS = 5  # per epoch
QUICK = {"epochs": 2, "batch": 2, "device": "cpu", "log_every": 3, "save_every": 2, "method": "ilyolox",
         "method.center_score": 0, "method.other_score": 0}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def without_waiting_for_the_disk():
    with pytest.MonkeyPatch.context() as m:
        m.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A model of three classes, and a folder that knows one of them and a new one."""
    root = tmp_path_factory.mktemp("extend")
    torch.manual_seed(0)
    weights.save_model(root / "m.safetensors", detectors.build(("cat", "dog", "cow"), name="yolox-pico", size=64))
    write_coco(sample_index(root / "raw", images=12, names=("dog", "eel")), root / "folder")
    return root


def go(place: Path, out: Path, *, hooks: Sequence[Hooks] = (), **words) -> Path:
    given = {"model": str(place / "m.safetensors"), "data": str(place / "folder"), "out": str(out), **QUICK, **words}
    return extend(load(given), reporter=Reporter(quiet=True), hooks=hooks)


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory) -> Path:
    return go(place, tmp_path_factory.mktemp("whole") / "run")


def results_of(out: Path) -> dict:
    content = json.loads((out / "results.json").read_text())
    return {**content, "tasks": [{**t, "seconds": 0, "peak_memory_mb": 0} for t in content["tasks"]]}


def assert_equal(a: Path, b: Path) -> None:
    x, y = (load_file(out / "model.safetensors") for out in (a, b))
    assert x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)
    assert results_of(a) == results_of(b)
    logged = [[{**m, "images_per_second": 0} for m in read_metrics(out)] for out in (a, b)]
    assert logged[0] == logged[1] and len(logged[0]) == 4  # steps 3, 6, 9 and the last


def stop(place: Path, out: Path, hooks: Sequence[Hooks] = (), **words) -> None:
    with pytest.raises(Killed):
        go(place, out, hooks=hooks, **words)


# Killed in every phase ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 1, STEPS - 1, STEPS + 1, 2 * STEPS - 1])
def test_killed_in_training(whole, place, tmp_path, monkeypatch, step):
    stop(place, tmp_path / "run", kill_after(1, step))
    assert not (tmp_path / "run" / "model.safetensors").exists()
    torch.manual_seed(7)
    looked_at = []
    monkeypatch.setattr(looked, "write", lambda *_: looked_at.append(1))
    assert_equal(whole, go(place, tmp_path / "run"))
    assert not looked_at, "what the old model finds is read, and not looked for again"


@pytest.mark.parametrize(
    ("module", "name"),
    [(old_objects, "look"), (measure.Measure, "judge"), (write, "results"), (write, "examples"), (write, "finish")],
    ids=["in the search for old objects", "measuring", "before the model is written", "after it", "before the report"],
)
def test_killed_around_training(whole, place, tmp_path, monkeypatch, module, name):
    def dying(*_, **__):
        raise Killed

    with monkeypatch.context() as m:
        m.setattr(module, name, dying)
        stop(place, tmp_path / "run")
    torch.manual_seed(7)
    assert_equal(whole, go(place, tmp_path / "run"))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_writes_and_leaves(whole, place, tmp_path, name):
    number = getattr(signal, name, None)
    if number is None:
        pytest.skip(f"no {name} on this system")
    signalled = AtStep(1, STEPS, lambda: os.kill(os.getpid(), number))
    with pytest.raises(KeyboardInterrupt if name == "SIGINT" else RunAgain) as caught:
        go(place, tmp_path / "run", hooks=[signalled], save_every=0)
    if name != "SIGINT":
        assert caught.value.code == 75
    state = checkpoint.load_state(tmp_path / "run" / "last" / "state.pt")
    assert state and state["fit"]["done"] == STEPS + 1, "the step was finished and written"
    assert not (tmp_path / "run" / lock.NAME).exists()
    assert_equal(whole, go(place, tmp_path / "run"))


def test_an_incomplete_state_is_named_and_the_one_before_is_used(whole, place, tmp_path):
    out = tmp_path / "run"
    stop(place, out, kill_after(1, STEPS + 1))
    path = out / "last" / "state.pt"
    path.write_bytes(path.read_bytes()[:-1])
    go(place, out)
    results = results_of(out)
    (warning,) = [w for w in results["warnings"] if "state.pt is incomplete" in w]
    assert "The checkpoint before it was used" in warning
    results["warnings"].remove(warning)
    (out / "results.json").write_text(json.dumps(results))
    assert_equal(whole, out)


def test_a_plan_for_another_machine_is_not_taken(whole, place, tmp_path, monkeypatch):
    stop(place, tmp_path / "run", kill_after(1, STEPS + 1))
    monkeypatch.setattr(effort, "choose", None)
    assert_equal(whole, go(place, tmp_path / "run"))


# Finished, or another's -----------------------------------------------------------------------------------------------


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def test_a_finished_extension_is_not_changed(copy, place, capsys):
    before = {p: p.stat().st_mtime_ns for p in copy.rglob("*") if p.is_file()}
    given = {"model": str(place / "m.safetensors"), "data": str(place / "folder"), "out": str(copy), **QUICK}
    extend(load(given))
    assert "is finished; nothing is left to train" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in copy.rglob("*") if p.is_file()}
    with pytest.raises(CiodError, match=r"holds a run with other settings \(lr was None, is 0\.1\)"):
        go(place, copy, lr=0.1)
    with pytest.raises(CiodError, match="already holds a run; choose another out=, or resume=auto"):
        go(place, copy, resume="never")


def test_a_damaged_model_is_made_again(whole, copy, place):
    path = copy / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    path.write_bytes(content)
    go(place, copy)
    x, y = (load_file(out / "model.safetensors") for out in (whole, copy))
    assert all(torch.equal(x[k], y[k]) for k in x)
    assert any("model.safetensors is damaged" in w for w in results_of(copy)["warnings"])


def test_each_command_has_its_own_folders(copy, place, tmp_path):
    with pytest.raises(CiodError, match="holds a run of ciod extend; choose another out="):
        engine.train(settings(place / "folder", copy, "split=1+1"), reporter=Reporter(quiet=True))
    state = checkpoint.load_state(copy / "last" / "state.pt")
    assert state
    checkpoint.save_state(tmp_path / "other" / "last" / "state.pt", {**state, "command": "train", "task": 0})
    with pytest.raises(CiodError, match="holds a run of ciod train; choose another out="):
        go(place, tmp_path / "other")
    checkpoint.save_state(tmp_path / "old" / "last" / "state.pt", {"extend": "{}", "fit": {}})
    with pytest.raises(CiodError, match="holds a run of another version of ciod"):
        go(place, tmp_path / "old")


def test_two_at_once(place, tmp_path):
    with lock.owner_of(tmp_path / "run"), pytest.raises(lock.Taken, match="is in use by another run of this process"):
        go(place, tmp_path / "run")


# What an extension is resumed on --------------------------------------------------------------------------------------


@pytest.fixture
def stopped(place, tmp_path) -> Path:
    """A place of its own with an extension in it that was stopped."""
    shutil.copytree(place, tmp_path / "place")
    stop(tmp_path / "place", tmp_path / "run", kill_after(1, STEPS + 1))
    return tmp_path / "place"


def test_a_dry_run_says_where_it_would_be_resumed(stopped):
    given = {"model": str(stopped / "m.safetensors"), "data": str(stopped / "folder"), **QUICK}
    _, lines = dry_run.plan(load(given | {"out": str(stopped.parent / "run")}))
    assert (
        lines[-1]
        == f"nothing was trained; the extension in {stopped.parent / 'run'} would be resumed at step {STEPS + 2}"
    )


def test_other_data_are_refused_unless_allowed(stopped):
    out, path = stopped.parent / "run", stopped / "folder" / "train.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"][0] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(CiodError, match=r"holds a run with other data \(t\w+ data: .* has other boxes.*allow=data"):
        go(stopped, out)
    go(stopped, out, allow="data")
    assert any("Resumed with different data" in w for w in results_of(out)["warnings"])


@pytest.mark.parametrize(
    ("file", "what"),
    [
        ("old_data/images/000001.png", r"old training data: images/000001\.png has other"),
        ("old_data/images/000050.png", r"old data: images/000050\.png has other"),
        ("pool/000001.png", r"pool data: pool/000001\.png has other"),
    ],
)
def test_other_negatives_are_refused_unless_allowed(place, tmp_path, file, what):
    """Pictures of pool= and old_data= train the branch to be silent, so they decide its weights, too."""
    write_coco(sample_index(tmp_path / "raw", images=12, names=("eel", "fox")), tmp_path / "folder")
    write_coco(sample_index(tmp_path / "old", names=("cat", "dog", "cow")), tmp_path / "old_data")
    write_coco(sample_index(tmp_path / "val", names=("cat", "dog", "cow"), first=50), tmp_path / "old_data", "val")
    sample_index(tmp_path / "pool", images=5)
    words = {k: v for k, v in QUICK.items() if not k.startswith("method")}
    words |= {"model": str(place / "m.safetensors"), "data": str(tmp_path / "folder"), "out": str(tmp_path / "run")}
    words |= {"old_data": str(tmp_path / "old_data"), "pool": str(tmp_path / "pool"), "method": "freeze_branch"}
    with pytest.raises(Killed):
        extend(load(words), reporter=Reporter(quiet=True), hooks=kill_after(1, 2))
    changed = tmp_path / file
    changed.write_bytes(changed.read_bytes() + b"0")
    with pytest.raises(CiodError, match=rf"holds a run with other data \({what}.*allow=data"):
        extend(load(words), reporter=Reporter(quiet=True))


def test_settings_that_are_given_on_resuming_hold(place, tmp_path, capsys):
    """The plan is kept, except for what is set by hand now."""
    out = tmp_path / "run"
    stop(place, out, kill_after(1, 2))
    with pytest.raises(CiodError, match=r"holds a run with other settings \(epochs was 2, is 1\)"):
        go(place, out, epochs=1)
    given = {"model": str(place / "m.safetensors"), "data": str(place / "folder"), "out": str(out), **QUICK}
    extend(load({**given, "epochs": 1, "allow": "settings"}), reporter=Reporter())
    results = results_of(out)
    assert results["tasks"][-1]["steps"] == STEPS and results["extension"]["plan"]["epochs"] == 1
    assert "resumed with epochs=1 (as asked)" in capsys.readouterr().out


def test_another_model_is_refused_unless_allowed(stopped):
    out = stopped.parent / "run"
    weights.save_model(stopped / "m.safetensors", detectors.build(("cat", "dog", "cow"), name="yolox-pico", size=64))
    with pytest.raises(CiodError, match=r"other data \(the model m\.safetensors has other content\).*allow=data"):
        go(stopped, out)
    go(stopped, out, allow=["data"])


def test_other_code_is_refused_unless_allowed(stopped, monkeypatch):
    out, real = stopped.parent / "run", fingerprints.of_code

    def edited(*given, **more):
        found = real(*given, **more)
        assert "extension/run.py" in found["files"] and "report/page.py" not in found["files"]
        return {**found, "files": {**found["files"], "extension/effort.py": "other"}}

    monkeypatch.setattr(fingerprints, "of_code", edited)
    with pytest.raises(CiodError, match=r"other code \(extension/effort\.py changed\).*allow=code"):
        go(stopped, out)
    go(stopped, out, allow="code")


# Several processes ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed")
def test_two_processes_equal_one(place, tmp_path):
    words = ["extend", str(place / "m.safetensors"), f"data={place / 'folder'}", "device=cpu", "epochs=2", "batch=2",
             "method=ilyolox", "method.center_score=0", "method.other_score=0", "optimizer=sgd", "lr=0.01",
             "log_every=1"]  # fmt: skip
    one = launch(*words, f"out={tmp_path / 'one'}", cwd=tmp_path)
    assert one.returncode == 0, one.stderr
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "ciod.cli")
    two = launch(*words, f"out={tmp_path / 'two'}", cwd=tmp_path, before=torchrun)
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("report:") == 1  # one process speaks
    before = load_file(place / "m.safetensors")
    a, b = (load_file(tmp_path / n / "model.safetensors") for n in ("one", "two"))
    assert a.keys() == b.keys()
    assert max(float((a[k].float() - b[k].float()).abs().max()) for k in a) <= 1e-5
    assert max(float((a[k] - v).abs().max()) for k, v in before.items() if "neck." in k and v.dim() == 4) > 1e-4
    assert len(read_metrics(tmp_path / "one")) == len(read_metrics(tmp_path / "two")) == 2 * STEPS
    x, y = (json.loads((tmp_path / n / "results.json").read_text())["extension"] for n in ("one", "two"))
    assert x["found"] == y["found"] and x["retention"]["rows"] == y["retention"]["rows"]

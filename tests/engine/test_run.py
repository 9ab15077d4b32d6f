"""Whole runs, small: resuming, several processes, the run folder, and what is said when something goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file

import ciod
from ciod import config
from ciod.data.shapes import CLASSES, write_shapes
from ciod.engine import checkpoint
from ciod.engine import run as engine
from ciod.engine.distributed import World
from ciod.engine.fit import Fit, NotFinite
from ciod.engine.progress import Reporter
from ciod.errors import CiodError
from ciod.report.log import read_metrics

# Every teacher position is kept, so that the teacher matters although nothing is learnt in a few steps.
WORDS = ["split=6+4", "detector=yolox-pico", "size=64", "epochs=2", "batch=4", "log_every=1", "warmup=1",
         "method=ilyolox", "method.center_score=0", "method.other_score=0"]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes") / "data", train=12, val=6, size=64)


def settings(data: Path, out: Path, *words: str) -> config.Run:
    return config.load(None, [*WORDS, f"data={data}", f"out={out}", "device=cpu", *words])


def go(data: Path, out: Path, *words: str) -> Path:
    return engine.train(settings(data, out, *words), command="a test", reporter=Reporter(quiet=True))


def weights_of(out: Path, task: int = 2) -> dict[str, torch.Tensor]:
    return load_file(out / f"task-{task}" / "model.safetensors")


def results_of(out: Path) -> dict:
    """Without what differs from one machine, day or folder to the next."""
    results = json.loads((out / "results.json").read_text())
    for task in results["tasks"]:
        for key in ("seconds", "peak_memory_mb"):
            assert task.pop(key) > 0
    return results


def steps_of(out: Path, task: int) -> int:
    """Steps of an epoch of ``task`` (0 or 1)."""
    return json.loads((out / "results.json").read_text())["tasks"][task]["steps"] // 2


def losses_of(out: Path) -> list[tuple]:
    return [(m["task"], m["epoch"], m["step"], m["losses"], m["lr"]) for m in read_metrics(out) if m["kind"] == "step"]


def assert_equal(a: Path, b: Path) -> None:
    for task in (1, 2):
        x, y = weights_of(a, task), weights_of(b, task)
        assert x.keys() == y.keys()
        for key in x:
            assert torch.equal(x[key], y[key]), f"task {task}: {key}"
    assert results_of(a) == results_of(b)
    assert losses_of(a) == losses_of(b)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    """A run that nothing interrupted."""
    return go(data, tmp_path_factory.mktemp("whole") / "run")


# The run folder -------------------------------------------------------------------------------------------------------


def test_the_folder_has_what_it_promises(whole):
    files = {str(p.relative_to(whole)) for p in whole.rglob("*") if p.is_file()}
    examples = {f for f in files if f.startswith("task-2/examples/")}
    assert files - examples == {
        "run.yaml",
        "metrics.jsonl",
        "results.json",
        "report.html",
        "last/state.pt",
        "last/previous.pt",
        "last/data.json",
        "task-1/model.safetensors",
        "task-2/model.safetensors",
    }
    assert examples and all(f.endswith(".jpg") for f in examples)


def test_results(whole):
    results = json.loads((whole / "results.json").read_text())
    assert list(results) == [
        "format", "scenario", "detector", "method", "seed", "tasks", "ap", "continual", "upper_bounds", "warnings"
    ]  # fmt: skip
    assert results["upper_bounds"] is None  # no joint run is known
    assert results["format"] == 1 and results["seed"] == 0
    assert results["warnings"] == [w for t in results["tasks"] for w in t["warnings"]], (
        "of nothing learnt it is said so"
    )
    assert "never fire" in results["warnings"][0] and "arrow, circle" in results["warnings"][0]
    assert results["scenario"]["classes"] == list(CLASSES) and results["scenario"]["split"] == [6, 4]
    assert {"order", "images", "boxes", "eval_images", "joint", "metric", "data", "protocol"} <= set(
        results["scenario"]
    )
    assert results["detector"] == {"name": "yolox-pico", "head": "grow"}
    assert results["method"] == {"name": "ilyolox", "settings": {"center_score": 0, "other_score": 0}}
    for metric in ("AP", "AP50"):
        assert [list(row) for row in results["ap"][metric]] == [list(CLASSES[:6]), list(CLASSES)]
        assert set(results["continual"][metric]) >= {"omega", "abs_gap", "rel_gap", "forgetting", "retention"}
        assert results["continual"][metric]["rel_gap"] is None  # no joint run is known
    first, second = results["tasks"]
    assert (first["index"], first["old_classes"], first["old"], first["hidden_boxes"]) == (0, [], None, 0)
    assert second["new_classes"] == list(CLASSES[6:]) and second["old_classes"] == list(CLASSES[:6])
    assert second["hidden_boxes"] > 0 and second["test_images"] == 6
    for task in (first, second):
        assert {"AP", "AP50", "AP75", "APs", "APm", "APl"} == set(task["all"]) and {"AP", "AP50"} == set(task["new"])
        assert task["seconds"] > 0 and task["peak_memory_mb"] > 0 and task["epochs"] == 2
        assert task["steps"] == 2 * -(-task["train_images"] // 4)


def test_settings_of_a_run(whole, data):
    content = yaml.safe_load((whole / "run.yaml").read_text())
    assert content["command"] == "a test" and content["seed"] == 0
    assert content["train"]["epochs"] == 2 and content["data"] == str(data)
    assert {"python", "torch", "torchvision", "ciod"} <= set(content["versions"]) and content["machine"]
    assert "commit" in content


def test_file_names_need_not_be_text(tmp_path):
    """Latin-1 on a disk whose other names are UTF-8, as old archives unpack to: no error at the end of a run."""
    data = write_shapes(tmp_path / "data", train=8, val=4, size=64)
    for split in ("train", "val"):
        listing = json.loads((data / f"{split}.json").read_text())
        for image in listing["images"]:
            (file,) = data.rglob(Path(image["file_name"]).name)
            file.rename(file.with_name(f"{file.stem}-\udce9{file.suffix}"))
            image["file_name"] = image["file_name"].replace(".", "-\udce9.")
        (data / f"{split}.json").write_text(json.dumps(listing))
    out = go(data, tmp_path / "out")
    assert r"\udce9" in (out / "last" / "data.json").read_text() and (out / "report.html").is_file()
    said = launch("eval", str(out / "task-2" / "model.safetensors"), f"data={data}", "device=cpu", cwd=tmp_path)
    assert said.returncode == 0, said.stderr


def test_metrics_of_a_run(whole):
    logged = read_metrics(whole)
    steps = [m for m in logged if m["kind"] == "step"]
    assert [m["step"] for m in steps if m["task"] == 0] == list(range(1, 2 * steps_of(whole, 0) + 1))
    assert set(steps[0]["losses"]) == {"cls", "box", "obj"}
    assert set(steps[-1]["losses"]) == {"cls", "box", "obj", "distill_cls", "distill_box"}
    assert steps[-1]["losses"]["distill_cls"] > 0 and steps[-1]["losses"]["distill_box"] > 0
    tasks = [m for m in logged if m["kind"] == "task"]
    assert [m["task"] for m in tasks] == [0, 1] and {"AP", "AP50"} <= set(tasks[0])


def test_models_are_enough_by_themselves(whole, tmp_path):
    moved = tmp_path / "elsewhere.safetensors"
    moved.write_bytes((whole / "task-2" / "model.safetensors").read_bytes())
    detector = ciod.load(moved)
    assert detector.class_names == CLASSES and detector.input.size == 64
    assert [step["classes"] for step in detector.lineage] == [list(CLASSES[:6]), list(CLASSES[6:])]
    step = detector.lineage[1]
    assert step["method"]["name"] == "ilyolox" and step["epochs"] == 2 and step["seed"] == 0 and step["images"] > 0
    assert not any("teacher" in k or "student" in k for k in detector.state_dict())
    assert ciod.load(whole / "task-1" / "model.safetensors").class_names == CLASSES[:6]


def test_the_report_is_whole_and_needs_nothing_else(whole):
    page = (whole / "report.html").read_text()
    assert page.rstrip().endswith("</html>") and CLASSES[0] in page
    assert "http://" not in page.replace("http://www.w3.org", "") and "<script src" not in page


def test_the_state_file_loads_without_code(whole):
    state = torch.load(whole / "last" / "state.pt", weights_only=True)
    assert state["task"] == 2 and "fit" not in state  # nothing is left to go on with


def test_a_finished_run_is_left_as_it_is(whole, data):
    before = (whole / "task-2" / "model.safetensors").stat().st_mtime_ns
    results = results_of(whole)
    assert go(data, whole) == whole
    assert (whole / "task-2" / "model.safetensors").stat().st_mtime_ns == before and results_of(whole) == results


def test_the_same_seed_gives_the_same_weights_and_another_does_not(whole, data, tmp_path):
    assert_equal(whole, go(data, tmp_path / "again"))
    other = weights_of(go(data, tmp_path / "other", "seed=1", "epochs=1"), 1)
    assert not torch.equal(other["backbone.stem.conv.conv.weight"],
                           weights_of(whole, 1)["backbone.stem.conv.conv.weight"])  # fmt: skip


# Resuming -------------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Nothing catches it: as sudden as a power cut, inside one process."""


def kill_in_step(monkeypatch, task: int, step: int) -> None:
    real = Fit._step

    def dying(self, batch, at, total):
        if self.task == task and at == step:
            raise Killed
        real(self, batch, at, total)

    monkeypatch.setattr(Fit, "_step", dying)


@pytest.mark.parametrize(
    ("task", "epoch"), [(1, 1), (1, 0), (0, 1)], ids=["task 2 epoch 2", "task 2 epoch 1", "task 1 epoch 2"]
)
def test_resumed_equals_uninterrupted(whole, data, tmp_path, monkeypatch, task, epoch):
    with monkeypatch.context() as m:
        kill_in_step(m, task, epoch * steps_of(whole, task) + 1)
        with pytest.raises(Killed):
            go(data, tmp_path / "run")
    assert not (tmp_path / "run" / "task-2").exists()
    torch.manual_seed(12345)  # another process has another state of every generator
    go(data, tmp_path / "run")
    assert_equal(whole, tmp_path / "run")


def test_killed_between_training_and_evaluation(whole, data, tmp_path, monkeypatch):
    with monkeypatch.context() as m:
        real = engine.Runner._evaluate

        def dying(self, task, *rest):
            if task.index == 1:
                raise Killed
            real(self, task, *rest)

        m.setattr(engine.Runner, "_evaluate", dying)
        with pytest.raises(Killed):
            go(data, tmp_path / "run")
    go(data, tmp_path / "run")
    assert_equal(whole, tmp_path / "run")


def test_killed_while_the_state_is_written(whole, data, tmp_path, monkeypatch):
    """Half a state beside the old one: the old one counts."""
    with monkeypatch.context() as m:
        saved = []
        real = torch.save

        def dying(state, file):
            saved.append(1)
            if len(saved) == 5:
                file.write(b"half")
                raise Killed
            real(state, file)

        m.setattr(checkpoint.torch, "save", dying)
        with pytest.raises(Killed):
            go(data, tmp_path / "run")
    assert len(saved) == 5
    go(data, tmp_path / "run")
    assert_equal(whole, tmp_path / "run")


def test_a_second_kill_is_survived_too(whole, data, tmp_path, monkeypatch):
    for step in (1, steps_of(whole, 1) + 1):
        with monkeypatch.context() as m:
            kill_in_step(m, 1, step)
            with pytest.raises(Killed):
                go(data, tmp_path / "run")
    go(data, tmp_path / "run")
    assert_equal(whole, tmp_path / "run")


def test_a_torn_state_file_says_what_to_do(data, tmp_path):
    (tmp_path / "run" / "last").mkdir(parents=True)
    (tmp_path / "run" / "last" / "state.pt").write_bytes(b"torn")
    with pytest.raises(CiodError, match=r"state\.pt is torn.*choose another out=, or remove"):
        go(data, tmp_path / "run")


def test_other_settings_in_the_same_folder_are_refused(whole, data):
    with pytest.raises(CiodError, match=r"holds a run with other settings \(train\.lr was 0\.002, is 0\.5\)"):
        go(data, whole, "lr=0.5")
    with pytest.raises(CiodError, match=r"other settings \(.*method\.nms_iou was None, is 0\.7"):
        go(data, whole, "method.nms_iou=0.7")
    go(data, whole, "log_every=5", "workers=0", "eval_every=1")  # what changes no result may change


def test_resume_never(whole, data):
    with pytest.raises(CiodError, match="already holds a run; choose another out=, or resume=auto"):
        go(data, whole, "resume=never")


def test_a_folder_that_lost_its_state(whole, data, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text((whole / "results.json").read_text())
    with pytest.raises(CiodError, match=r"holds a run without its last/ folder; choose another out="):
        go(data, tmp_path / "run")


KILLER = """
import os, signal
from pathlib import Path
from ciod.methods.ilyolox import ILYOLOX

class Killer(ILYOLOX):
    "ilYOLOX in a process that is killed while a file lies beside this one."
    def before_step(self):
        if self.teacher is not None and Path(__file__).with_name("kill").exists():
            self.__dict__["_n"] = self.__dict__.get("_n", 0) + 1
            if self.__dict__["_n"] == STEP:
                os.kill(os.getpid(), signal.SIGKILL)
"""


def command(data: Path, out: Path, *words: str) -> list[str]:
    return ["train", *WORDS, f"data={data}", f"out={out}", "device=cpu", *words]


def launch(*words: str, cwd: Path, before: tuple[str, ...] = ("-m", "ciod.cli")) -> subprocess.CompletedProcess:
    root = str(Path(ciod.__file__).parents[1])
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
    }
    return subprocess.run([sys.executable, *before, *words], capture_output=True, text=True, cwd=cwd, env=env)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_real_kill(whole, data, tmp_path):
    (tmp_path / "killer.py").write_text(KILLER.replace("STEP", str(steps_of(whole, 1) + 2)))
    method = f"method={tmp_path / 'killer.py'}:Killer"
    alive = launch(*command(data, tmp_path / "whole", method), cwd=tmp_path)
    assert alive.returncode == 0, alive.stderr
    (tmp_path / "kill").touch()
    killed = launch(*command(data, tmp_path / "run", method), cwd=tmp_path)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "run" / "task-2").exists()
    (tmp_path / "kill").unlink()
    resumed = launch(*command(data, tmp_path / "run", method), cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "going on with task 2 of 2" in resumed.stdout
    assert_equal(tmp_path / "whole", tmp_path / "run")


# Several processes ----------------------------------------------------------------------------------------------------


def assert_one_equals_two(data: Path, folder: Path, words: list[str]) -> None:
    """One process with four images a step, two with two: equal weights after each of two tasks.

    Batch normalisation with fixed statistics: others are per process. SGD: Adam divides rounding by itself.
    """
    words = ["train", *words, f"data={data}", "device=cpu", "norm=eval", "optimizer=sgd", "lr=0.01", "workers=0"]
    one = launch(*words, f"out={folder / 'one'}", cwd=folder)
    assert one.returncode == 0, one.stderr
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "ciod.cli")
    two = launch(*words, f"out={folder / 'two'}", cwd=folder, before=torchrun)
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("task 2/2") == 1  # one process speaks
    for task in (1, 2):
        a, b = weights_of(folder / "one", task), weights_of(folder / "two", task)
        assert a.keys() == b.keys()
        for key in a:
            assert (a[key].float() - b[key].float()).abs().max() <= 1e-5, f"task {task}: {key}"
    # they are not equal because nothing moves
    before, after = (weights_of(folder / "one", task) for task in (1, 2))
    neck = next(k for k in after if "neck." in k and after[k].dim() == 4)
    moved = after[neck] - before[neck]
    assert moved.abs().max() > 1e-4
    a, b = results_of(folder / "one"), results_of(folder / "two")
    assert [t["steps"] for t in a["tasks"]] == [t["steps"] for t in b["tasks"]]
    assert len(losses_of(folder / "two")) == len(losses_of(folder / "one"))


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed")
def test_one_process_of_four_equals_two_of_two(data, tmp_path):
    assert_one_equals_two(data, tmp_path, WORDS)


def test_shares_of_the_test_images():
    from ciod.engine.distributed import World

    for n in (0, 1, 5, 12):
        for size in (1, 2, 3, 7):
            shares = [World(r, size).share(n) for r in range(size)]
            assert [i for s in shares for i in s] == list(range(n))


def test_a_device_that_is_not_there():
    from ciod.engine.distributed import pick_device

    with pytest.raises(CiodError, match="device: 'gpu' is not a device; allowed: auto, cpu, cuda, cuda:N"):
        pick_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(CiodError, match="sees no GPU here; use device=auto or device=cpu"):
            pick_device("cuda")
        assert pick_device("auto").type == "cpu"


# Mistakes that show late ----------------------------------------------------------------------------------------------

BURST = """
import torch
from ciod.methods.finetune import Finetune

class Burst(Finetune):
    "A loss that bursts in the second step of the second task."
    def loss(self, batch):
        losses = super().loss(batch)
        if self.old:
            self.__dict__["_n"] = self.__dict__.get("_n", 0) + 1
            if self.__dict__["_n"] == 2:
                return {**losses, "box": losses["box"] * float("VALUE")}
        return losses
"""


def test_a_number_of_another_process(data, tmp_path, monkeypatch):
    monkeypatch.setattr(World, "all", lambda self, yes: False)
    with pytest.raises(NotFinite, match=r"^A number of another process became NaN or infinite in task 1\.$"):
        go(data, tmp_path / "run")
    assert not (tmp_path / "run" / "task-1").exists(), "nothing of it is kept"


def test_a_disk_with_little_room(data, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=150e6))
    with pytest.raises(CiodError, match=r"out: .*run has only 150 MB of room; a run needs a few hundred\."):
        go(data, tmp_path / "run")
    assert not (tmp_path / "run" / "run.yaml").exists()


def test_settings_made_without_data(tmp_path):
    """Those of the command line were checked before."""
    with pytest.raises(CiodError, match=r"^data: no data set is given; write data=FOLDER, or scenario=NAME\.$"):
        engine.train(config.Run(out=str(tmp_path / "run")), reporter=Reporter(quiet=True))


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("every", [1, 10])
def test_a_loss_that_is_no_number(data, tmp_path, value, every):
    (tmp_path / "burst.py").write_text(BURST.replace("VALUE", value))
    words = [w for w in WORDS if not w.startswith("method")]
    run = config.load(None, [*words, f"data={data}", f"out={tmp_path / 'run'}", f"log_every={every}", "ema=0",
                             f"method={tmp_path / 'burst.py'}:Burst"])  # fmt: skip
    with pytest.raises(NotFinite, match=rf"^box became {value} in task 2, step 2, images .*train_.*\.jpg") as caught:
        engine.train(run, reporter=Reporter(quiet=True))
    assert "lower train.lr" in str(caught.value) and "checkpoint is intact" in str(caught.value)
    state = checkpoint.load_state(tmp_path / "run" / "last" / "state.pt")
    assert state is not None and state["task"] == 1
    tensors = weights_of(tmp_path / "run", 1).values()
    assert all(t.isfinite().all() for t in tensors)


def test_too_few_epochs_for_the_tasks(data, tmp_path):
    with pytest.raises(CiodError, match=r"train\.epochs has 1 entries, but the scenario 2 tasks"):
        go(data, tmp_path / "run", "epochs=[1]")


def test_images_broken_during_the_run_are_named(tmp_path):
    own = write_shapes(tmp_path / "data", train=12, val=6, size=64)
    sick = sorted((own / "images").glob("train_*.jpg"))[3]
    sick.write_bytes(sick.read_bytes()[:200])
    out = go(own, tmp_path / "run", "epochs=1", "split=6")
    warnings = json.loads((out / "results.json").read_text())["warnings"]
    assert any(sick.name in w for w in warnings)


# Switches -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def joint(data, tmp_path_factory) -> Path:
    words = [*(w for w in WORDS if not w.startswith("method")), "method=joint", f"data={data}"]
    run = config.load(None, [*words, f"out={tmp_path_factory.mktemp('joint') / 'run'}", "device=cpu"])
    return engine.train(run, reporter=Reporter(quiet=True))


def test_joint_trains_once_with_the_recipe_of_the_longest_task(joint):
    results = json.loads((joint / "results.json").read_text())
    (task,) = results["tasks"]
    assert results["scenario"]["joint"] and task["new_classes"] == list(CLASSES) and task["epochs"] == 2
    assert not (joint / "task-2").exists()


def test_an_upper_bound_gives_gaps(whole, joint, data, tmp_path):
    """Every AP is nought after so few steps; the joint run is given some, so that gaps are numbers."""
    bound = tmp_path / "joint"
    bound.mkdir()
    results = json.loads((joint / "results.json").read_text())
    results["tasks"][-1]["all"] |= {"AP": 0.5, "AP50": 0.8}
    (bound / "results.json").write_text(json.dumps(results))
    with_bound = go(data, tmp_path / "run", f"upper_bound={bound}")
    found = json.loads((with_bound / "results.json").read_text())
    for metric, upper in (("AP", 0.5), ("AP50", 0.8)):
        final = found["tasks"][-1]["all"][metric]
        assert found["continual"][metric]["abs_gap"] == pytest.approx(upper - final)
        assert found["continual"][metric]["rel_gap"] == pytest.approx((upper - final) / upper)
        assert found["continual"][metric]["omega"] is not None
    assert found["upper_bounds"] == [None, results["tasks"][-1]["all"]]
    for task in (1, 2):  # it changes no weight
        a, b = weights_of(whole, task), weights_of(with_bound, task)
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_an_upper_bound_of_something_else(joint, data, tmp_path):
    results = json.loads((joint / "results.json").read_text())
    results["scenario"]["classes"] = ["cat"]
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(CiodError, match=r"upper_bound: .* is not a finished joint run of the same classes"):
        go(data, tmp_path / "run", f"upper_bound={tmp_path}", "epochs=1")


def test_the_first_task_of_another_run(whole, data, tmp_path):
    """It equals training it, and only the method may differ."""
    taken = go(data, tmp_path / "taken", f"first={whole}", "method.nms_iou=0.65")
    trained = go(data, tmp_path / "trained", "method.nms_iou=0.65")
    assert_equal(trained, taken)
    with pytest.raises(CiodError, match=r"first: .* was trained with other settings \(train\.lr was 0\.002, is 0\.5\)"):
        go(data, tmp_path / "other", f"first={whole}", "lr=0.5")


def test_a_full_head_from_the_start(data, tmp_path):
    out = go(data, tmp_path / "run", "head=full", "epochs=1")
    assert ciod.load(out / "task-1" / "model.safetensors").class_names == CLASSES
    assert [list(r) for r in json.loads((out / "results.json").read_text())["ap"]["AP"]] == [
        list(CLASSES[:6]),
        list(CLASSES),
    ]


def test_a_trunk_from_another_model(whole, data, tmp_path):
    out = go(data, tmp_path / "run", f"weights={whole / 'task-2' / 'model.safetensors'}", "epochs=1", "lr=1e-12",
             "norm=eval", "ema=0", "weight_decay=0")  # fmt: skip
    a, b = weights_of(whole, 2), weights_of(out, 1)
    for key in a:
        if not key.startswith("head."):
            torch.testing.assert_close(a[key], b[key], rtol=0, atol=1e-6)
    warning = json.loads((out / "results.json").read_text())["warnings"][0]
    assert "compare only runs with the same start" in warning


def test_batch_norm_keeps_its_statistics_after_the_first_task(whole, data, tmp_path):
    """norm=auto: statistics move in task 1 alone; norm=train moves them in both."""
    key = "backbone.stem.conv.bn.running_mean"
    assert torch.equal(weights_of(whole, 1)[key], weights_of(whole, 2)[key])
    assert weights_of(whole, 1)[key].any()
    moving = go(data, tmp_path / "run", "norm=train", "epochs=1")
    assert not torch.equal(weights_of(moving, 1)[key], weights_of(moving, 2)[key])


def test_holdout_tunes_on_training_images(data, tmp_path):
    train, test = engine.open_data(settings(data, tmp_path / "run", "holdout=0.25"))
    assert (len(train), len(test)) == (9, 3)
    assert all(f.name.startswith("train_") for f in test.files) and not set(train.files) & set(test.files)
    again = engine.open_data(settings(data, tmp_path / "run", "holdout=0.25"))
    assert again[1].files == test.files


def test_python_and_command_line_are_the_same(whole, data, tmp_path):
    results = ciod.train(data=str(data), split="6+4", detector="yolox-pico", size=64, epochs=2, batch=4, log_every=1,
                         warmup=1, method={"name": "ilyolox", "center_score": 0, "other_score": 0},
                         out=str(tmp_path / "run"), device="cpu")  # fmt: skip
    assert results["scenario"]["classes"] == list(CLASSES)
    assert_equal(whole, tmp_path / "run")

"""Every method on every kind of detector it fits, through the engine: three steps of a second task after a shared one.

A family of detectors is represented by its lightest variant.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ciod import detectors, methods
from ciod.config import load as config
from ciod.core.errors import CiodError
from ciod.core.run_log import read_metrics
from ciod.data.shapes.scenes import write_shapes
from ciod.detectors.base import Detector
from ciod.detectors.files import weights as files
from ciod.methods.base.method import Method
from ciod.runs import interim
from ciod.runs import run as engine
from ciod.training import checkpoint
from ciod.training.hooks import Hooks
from ciod.training.progress import Reporter
from tests.runs.commands import Killed, kill_after

# What a method needs beside its defaults to do anything within three steps of a detector that knows nothing yet.
SETTINGS: dict[str, tuple[str, ...]] = {
    "ilyolox": ("method.center_score=0", "method.other_score=0"),
    "pseudo_label": ("method.score=0",),
    "distill_pool": ("pool={data}",),
    "bpf": ("method.score=0",),
    "replay": ("memory.select=herding", "memory.labels=completed", "memory.score=0"),
}
# The setting that weighs everything a method adds to fine-tuning; without it the method is fine-tuning.
WEIGHT = {"l2sp": "method.weight", "ewc": "method.weight"}


@functools.cache
def lightest() -> dict[str, str]:
    """Family → its variant with the fewest parameters."""
    found, losses = {}, set()
    for family in detectors.families():
        if family.losses in losses or (family.extra and detectors.lacking(next(iter(family.variants)))):
            continue  # another backbone under the same head; or its packages are absent
        losses.add(family.losses)
        sizes = {}
        for name in family.variants:
            with torch.device("meta"):
                model = detectors.build(("a",), name=name)
            sizes[name] = sum(p.numel() for p in model.parameters())
        found[family.__name__] = min(sizes, key=sizes.__getitem__)
    return found


def pairs() -> list[tuple[str, str]]:
    return [
        (method, detector)
        for detector in lightest().values()
        for method in methods.available()
        if method != "joint" and methods.find(method).needs <= detectors.traits(detector)
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes") / "data", train=6, val=2, size=64)


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """The page and the pictures are tested elsewhere and take longer than the steps."""
    monkeypatch.setattr("ciod.report.page.write_report", lambda out: None)
    monkeypatch.setattr("ciod.report.examples.write_examples", lambda *_: None)


def go(data: Path, out: Path, detector: str, *words: str, hooks: Sequence[Hooks] = ()) -> Path:
    """Each task is three epochs of one step."""
    given = ["split=6+4", f"detector={detector}", "size=64", "epochs=3", "batch=6", "log_every=1", "warmup=0",
             f"data={data}", "device=cpu", f"out={out}", *words]  # fmt: skip
    return engine.train(config.load(None, given), command="a test", reporter=Reporter(quiet=True), hooks=hooks)


@pytest.fixture(scope="module")
def firsts(data, tmp_path_factory):
    """Detector → the folder of a finished run whose first task the others take over."""
    made: dict[str, Path] = {}

    def first(detector: str) -> Path:
        if detector not in made:
            made[detector] = go(data, tmp_path_factory.mktemp(detector) / "first", detector, "method=finetune")
        return made[detector]

    return first


def weights_of(out: Path, task: int = 2) -> dict[str, torch.Tensor]:
    return load_file(out / f"task-{task}" / "model.safetensors")


def losses_of(out: Path) -> list[dict[str, float]]:
    return [m["losses"] for m in read_metrics(out) if m["kind"] == "step" and m["task"] == 1]


def assert_equal(a: Path, b: Path) -> None:
    x, y = weights_of(a), weights_of(b)
    assert x.keys() == y.keys()
    for key in x:
        assert torch.equal(x[key], y[key]), key


def tensors(teacher: Detector) -> dict[str, torch.Tensor]:
    """The weights of a teacher that may be folded, which does not give them by name."""
    return {**dict(nn.Module.named_parameters(teacher)), **dict(teacher.named_buffers())}


class Watch:
    """What the engine does with the teacher, seen from outside."""

    def __init__(self, monkeypatch):
        self.before: list[dict[str, torch.Tensor]] = []
        self.teachers: list[Detector] = []
        real, watch = Method.attach, self

        def attach(method, student, detector, teacher):
            if teacher is not None and not any(teacher.detector is t for t in watch.teachers):
                watch.teachers.append(teacher.detector)
                watch.before.append({k: v.clone() for k, v in tensors(teacher.detector).items()})
            real(method, student, detector, teacher)

        monkeypatch.setattr(Method, "attach", attach)

    def check(self) -> None:
        for teacher, before in zip(self.teachers, self.before, strict=True):
            assert all(torch.equal(v, before[k]) for k, v in tensors(teacher).items())
            assert not any(m.training for m in teacher.modules())
            weights = nn.Module.named_parameters(teacher)
            assert not any(p.requires_grad or p.grad is not None for _, p in weights)


@pytest.mark.parametrize(("name", "detector"), pairs())
def test_a_second_task_of_three_steps(name, detector, data, firsts, tmp_path, monkeypatch):
    first = firsts(detector)
    words = (f"first={first}", f"method={name}", *(w.format(data=data) for w in SETTINGS.get(name, ())))
    watch = Watch(monkeypatch)
    whole = go(data, tmp_path / "whole", detector, *words)

    logged = losses_of(whole)
    assert len(logged) in (3, 6) and len({tuple(step) for step in logged}) == 1  # 6: half of a batch is extra images
    assert all(torch.tensor(v).isfinite() for step in logged for v in step.values())
    old, new = weights_of(whole, 1), weights_of(whole)
    assert old.keys() < new.keys()
    weights = {k: v for k, v in old.items() if not k.endswith(".ranking")}  # a count, not a weight
    assert any(not torch.equal(v, new[k]) for k, v in weights.items()) != (name in ("freeze", "freeze_branch"))
    assert len(watch.teachers) == int(bool(methods.find(name)().uses_teacher))
    watch.check()
    results = json.loads((whole / "results.json").read_text())
    assert [t["index"] for t in results["tasks"]] == [0, 1]

    with pytest.raises(Killed):
        go(data, tmp_path / "cut", detector, *words, hooks=kill_after(1, len(logged) - 2))
    torch.manual_seed(99)
    assert_equal(whole, go(data, tmp_path / "cut", detector, *words))


def test_an_interim_model_is_trained_in_the_run_and_resumed(data, firsts, tmp_path, monkeypatch):
    """Killed while it is trained; in the test above, after that."""
    detector = lightest()["FasterRCNN"]
    words = (f"first={firsts(detector)}", "method=bpf", "method.score=0")
    whole = go(data, tmp_path / "whole", detector, *words)
    model = files.load(whole / "task-2" / interim.FILE)
    assert model.class_names == files.load(whole / "task-2" / "model.safetensors").class_names[6:]
    real = interim.train_task
    with monkeypatch.context() as m, pytest.raises(Killed):
        m.setattr(interim, "train_task", functools.partial(real, hooks=kill_after(1, 1)))
        go(data, tmp_path / "cut", detector, *words)
    assert not (tmp_path / "cut" / "task-2" / interim.FILE).exists()
    saved = checkpoint.load_state(tmp_path / "cut" / "last" / checkpoint.NEWEST)
    assert saved["interim"] and saved["fit"]["done"] == 1
    assert_equal(whole, go(data, tmp_path / "cut", detector, *words))


@pytest.mark.parametrize("name", sorted(WEIGHT))
def test_zero_weight_is_fine_tuning(name, data, firsts, tmp_path):
    detector = lightest()["YOLOX"]
    first = firsts(detector)
    zero = go(data, tmp_path / "zero", detector, f"first={first}", f"method={name}", f"{WEIGHT[name]}=0")
    assert_equal(go(data, tmp_path / "plain", detector, f"first={first}", "method=finetune"), zero)
    some = go(data, tmp_path / "some", detector, f"first={first}", f"method={name}", f"{WEIGHT[name]}=1e4")
    with pytest.raises(AssertionError):
        assert_equal(zero, some)


@pytest.mark.parametrize("name", ["ewc", "merge", "replay"])
def test_a_first_task_taken_over_equals_one_s_own(name, data, firsts, tmp_path):
    """Methods that keep something of a finished task get it although another run trained it."""
    detector = lightest()["YOLOX"]
    words = (f"method={name}", *SETTINGS.get(name, ()))
    own = go(data, tmp_path / "own", detector, *words)
    assert_equal(own, go(data, tmp_path / "taken", detector, f"first={firsts(detector)}", *words))


def test_a_method_that_measures_its_first_task_takes_over_no_other(data, firsts, tmp_path):
    detector = lightest()["YOLOX"]
    with pytest.raises(CiodError, match=r"first: merge needs a first task of its own with these settings"):
        go(data, tmp_path / "run", detector, f"first={firsts(detector)}", "method=merge", "method.rule=duet")


MEMORIES = {
    "masked": ("memory=3", "memory.select=ocdm"),
    "unlabelled": ("memory=3", "memory.labels=none", "memory.select=calibrated"),
    "pool": ("pool={data}", "pool.share=0.3"),
    "both": ("memory=1", "memory.per=class", "memory.batches=merged", "pool={data}"),
}


@pytest.mark.parametrize("kind", MEMORIES)
def test_memory_and_pool_with_a_method_that_does_not_use_them(kind, data, firsts, tmp_path):
    words = [*SETTINGS["ilyolox"], *(w.format(data=data) for w in MEMORIES[kind])]
    first = firsts("yolox-pico")
    out = go(data, tmp_path / "run", "yolox-pico", f"first={first}", "method=ilyolox", *words)
    logged = losses_of(out)
    assert logged and all(torch.tensor(v).isfinite() for step in logged for v in step.values())
    state = checkpoint.load_state(out / "last" / "state.pt")
    assert state is not None and bool(state["memory"]) == (kind != "pool")
    counted = [(t["memory_images"], t["pool_images"]) for t in json.loads((out / "results.json").read_text())["tasks"]]
    assert counted[0] == (0, 0) and [n > 0 for n in counted[1]] == [kind != "pool", kind in ("pool", "both")]

"""A training step of every method on every kind of detector, with every option, asks the device for nothing.

On a GPU each of the counted operations would wait for the device. The optimiser is PyTorch's own; the losses are read
every ``log_every`` steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ciod import detectors, methods
from ciod.config.load import Train
from ciod.core.distributed import World
from ciod.core.types import Batch
from ciod.methods.base.split_class import SplitClass
from ciod.training import speed
from tests import fixed
from tests.methods.test_product import lightest, pairs

# ``.item()``, ``bool()`` and ``float()`` end in the first; the last stands for a mask as an index.
WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "mask")
CHOICES = {"ilyolox": {"center_score": 0.0, "other_score": 0.0}, "pseudo_label": {"score": 0.0}}
KNOWN = ("a", "b", "c")


class Copied(TorchFunctionMode):
    """Counts copies from the device, which on a CPU are none: they are seen where they are asked for."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        places = [
            v for v in (*args[1:], *(kwargs or {}).values()) if isinstance(v, str)
        ]  # copies to a device do not wait
        self.count += name in ("cpu", "tolist") or (name == "to" and "cpu" in places)
        return func(*args, **(kwargs or {}))


class Called(TorchDispatchMode):
    """Counts every operation, those of the backward pass too; much faster than a profile."""

    def __init__(self):
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().partition(".")[0]
        self.names[name] += 1
        if name.startswith("aten::index") and isinstance(args[1], (list, tuple)):
            self.names["mask"] += any(i is not None and i.dtype == torch.bool for i in args[1])
        return func(*args, **(kwargs or {}))


def batch() -> Batch:
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    made = fixed.batch(fixed.boxes_at_random(2, [3, 1], classes=1), images)
    made.targets.labels += len(KNOWN)
    made.source = torch.tensor([0, 1])
    made.targets.known = torch.tensor([[False, False, False, True], [True, True, True, False]])
    made.targets.background = torch.tensor([True, False])
    return made


def step(method: str, detector: str, given: dict, **settings) -> Callable[[], None]:
    """Forward passes, losses and backward of a second task."""
    train = Train(**settings)
    torch.manual_seed(0)
    student = detectors.build(KNOWN, name=detector, size=64, backbone_weights=None)
    for rows in student.class_layers():
        nn.init.normal_(rows.tensor, 0, 0.5)
    if train.trunk_lr == 0:
        speed.prepare(student, train, World())
    made = (SplitClass if method == "split_class" else methods.find(method))(**given)
    teacher = speed.make_teacher(student, train, student=student) if made.uses_teacher else None
    made.grow(student, ("d",))
    student.train()
    made.attach(student, student, teacher)
    made.begin_task(fixed.task(KNOWN, ("d",)))
    made.attach(speed.student(student, train, World()), student, teacher)
    data = batch()

    def run() -> None:
        with speed.shared(student, teacher, train):
            losses = made.loss(data)
        torch.stack(list(losses.values())).sum().backward()
        made.before_step()
        assert any(p.grad is not None for p in student.parameters()), "something was learnt"

    return run


def waits(run: Callable[[], None]) -> dict[str, int]:
    with Copied() as copied, Called() as called:
        run()
    found = {k: called.names[k] for k in WAITS if called.names[k]}
    return {**found, "copies": copied.count} if copied.count else found


def allowed(detector: str) -> dict[str, int]:
    """A query detector assigns its queries on the CPU, after one copy a step."""
    return {"copies": 1} if "query" in detectors.traits(detector) else {}


def test_operations_that_wait_are_seen():
    def run() -> None:
        x = torch.ones(1, 1, 4, 4, requires_grad=True)
        y = nn.Conv2d(1, 1, 1)(x)
        y.sum().backward()
        assert y[y > 100].numel() == 0 and y.sum().item() is not None

    assert waits(run) == {"aten::_local_scalar_dense": 1, "mask": 1}

    def copies() -> None:
        y = nn.Conv2d(1, 1, 1)(torch.ones(1, 1, 4, 4, requires_grad=True))
        y.sum().backward()
        assert y.cpu() is not None and y.to("cpu").flatten().tolist()
        assert y.to(torch.float32) is not None and y.to(y.device) is not None

    assert waits(copies)["copies"] == 3


@pytest.mark.parametrize(("method", "detector"), pairs())
def test_a_step_waits_for_nothing(method, detector):
    assert waits(step(method, detector, CHOICES.get(method, {}))) == allowed(detector)


@pytest.mark.parametrize("detector", sorted(lightest().values()))
@pytest.mark.parametrize(
    "settings",
    [{"trunk_lr": 0}, {"accumulate": 2}, {"teacher": "bf16"}, {"teacher": "exact", "share_frozen": False}],
    ids=lambda s: ",".join(f"{k}={v}" for k, v in s.items()),
)
def test_no_option_waits(detector, settings):
    method = "pseudo_label" if "query" in detectors.traits(detector) else "ilyolox"
    assert waits(step(method, detector, CHOICES[method], **settings)) == allowed(detector)


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("ilyolox", {"select": "all_mean_std", "guard_iou": 0.5}),
        ("ilyolox", {"select": "class_mean_std", "error": "kl", "unseen": "ignore"}),
        ("ilyolox", {"select": "threshold", "score": 0.0, "target": "hy2", "old_in_ordinary_loss": True}),
        ("pseudo_label", {"score": 0.1, "top_k": 3, "doubt": 0.05}),
        ("pseudo_label", {"class_scores": {"a": 0.2}}),
        ("lwf", {"objectness": "spare", "reduction": "image_sum"}),
        ("finetune", {"mask": "new"}),
        ("split_class", {"parent": "b"}),
    ],
    ids=lambda v: v if isinstance(v, str) else ",".join(v),
)
def test_settings_of_methods_wait_neither(method, given):
    assert not waits(step(method, "yolox-pico", given))

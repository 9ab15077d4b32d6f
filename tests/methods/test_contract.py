"""What every method promises the engine; and how methods are found."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from ciod import detectors, methods
from ciod.core.errors import CiodError
from ciod.methods.base.method import Method
from tests import fixed

OLD, NEW = ("ant", "bee"), ("cow", "dog")
SIZE = 64


class Counted:
    """A student that counts its forwards."""

    def __init__(self, detector):
        self.detector, self.calls = detector, 0

    def __call__(self, images):
        self.calls += 1
        return self.detector(images)


def step(method: Method, detector, optimizer, seed: int, labels: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (2, 3, SIZE, SIZE), generator=g, dtype=torch.uint8)
    detector.train()
    losses = method.loss(fixed.batch(fixed.boxes_at_random(seed, [2, 1], classes=labels), images))
    optimizer.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    method.before_step()
    optimizer.step()
    return losses


def fitting(name: str) -> str:
    """A detector that the method runs on."""
    needs = methods.find(name).needs
    return "ddetr-pico" if "given_queries" in needs else "fasterrcnn-pico" if "rois" in needs else "yolox-nano"


@pytest.mark.parametrize(("name", "detector_name"), [(n, fitting(n)) for n in methods.available()])
def test_two_tasks_of_two_steps(name, detector_name):
    torch.manual_seed(0)
    cls = methods.find(name)
    if detectors.lacking(detector_name):
        pytest.skip("transformers is absent: pip install 'ciod[detr]'")
    method = cls()
    assert method.needs <= detectors.traits(detector_name) and cls.__doc__
    detector = detectors.build((), name=detector_name, size=SIZE)

    for old, new in (((), OLD), (OLD, NEW)):
        teacher = detector.frozen() if old and cls.uses_teacher else None
        looked = []
        if teacher is not None:
            teacher.register_forward_hook(lambda *_, looked=looked: looked.append(1))
        detector.grow(new)
        task = fixed.task(old, new)
        student = Counted(detector)
        method.attach(student, detector, teacher)
        method.begin_task(task)
        assert method.old == len(old) and (method.teacher and method.teacher.detector) is teacher
        optimizer = torch.optim.SGD(detector.parameters(), lr=1e-3)
        names = set()
        for i in range(2):
            losses = step(method, detector, optimizer, i, len(old) + len(new))
            names.add(tuple(losses))
            assert all(v.shape == () and v.dtype == torch.float32 and v.isfinite() for v in losses.values())
        assert len(names) == 1
        assert student.calls == 2  # exactly one forward of the student a step
        assert len(looked) == (2 if teacher is not None else 0)  # and of the teacher
        method.end_task(task)
        method.load_state(method.state())
        assert not any("teacher" in n for n, _ in detector.named_modules())


@pytest.mark.parametrize("name", methods.available())
def test_settings_are_closed(name):
    with pytest.raises(ValidationError):
        methods.find(name)(no_such_setting=1)


def test_the_available_methods():
    assert {"finetune", "joint", "pseudo_label", "ilyolox"} <= set(methods.available())
    assert not {"method", "selection"} & set(methods.available())


def test_an_unknown_name_has_a_suggestion():
    with pytest.raises(CiodError, match="no method 'ilyolo'; did you mean 'ilyolox'"):
        methods.find("ilyolo")


MINE = """
from ciod.methods.finetune import Finetune
from ciod.methods.base.method import Method

class Mine(Method):
    "Half of everything."
    share: float = 0.5

    def loss(self, batch):
        return {k: self.share * v for k, v in super().loss(batch).items()}

class Other(Method):
    pass

NotOne = 3
"""


def test_a_method_from_a_file(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    cls = methods.find(f"{tmp_path / 'mine.py'}:Mine")
    assert issubclass(cls, Method) and cls().share == 0.5
    detector = detectors.build(OLD, name="yolox-nano", size=SIZE)
    plain, half = Method(), cls()
    batch = fixed.batch(fixed.boxes_at_random(0, [1], classes=2))
    for m in (plain, half):
        m.attach(fixed.Returns(fixed.random_outputs(0, 2, images=1)), detector, None)
        m.begin_task(fixed.task((), OLD))
    a, b = plain.loss(batch), half.loss(batch)
    assert all(b[k].item() == pytest.approx(a[k].item() / 2) for k in a)


@pytest.mark.parametrize(
    ("tail", "match"),
    [
        (":Min", "has no Method 'Min'; did you mean 'Mine'"),
        (":NotOne", "has no Method 'NotOne'"),
        ("", r"name the class in .*, too: method=.*\.py:\w+"),
        (":Method", "has no Method 'Method'"),
    ],
)
def test_a_class_that_does_not_exist(tmp_path, tail, match):
    (tmp_path / "mine.py").write_text(MINE)
    with pytest.raises(CiodError, match=match):
        methods.find(f"{tmp_path / 'mine.py'}{tail}")


def test_a_file_that_is_absent_or_does_not_import(tmp_path):
    with pytest.raises(CiodError, match=r"there is no file .*absent\.py"):
        methods.find(f"{tmp_path / 'absent.py'}:Mine")
    (tmp_path / "broken.py").write_text("import no_such_module_anywhere\n")
    with pytest.raises(CiodError, match=r"broken\.py cannot be imported: ModuleNotFoundError: .*no_such_module"):
        methods.find(f"{tmp_path / 'broken.py'}:Mine")
    (tmp_path / "wrong.py").write_text("def f(:\n")
    with pytest.raises(CiodError, match=r"wrong\.py cannot be imported: SyntaxError"):
        methods.find(f"{tmp_path / 'wrong.py'}:Mine")

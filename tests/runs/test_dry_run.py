"""ciod train --dry-run: the plan says what the run does, and without data what it can."""

from __future__ import annotations

import pytest

from ciod.config import load as config
from ciod.data.shapes.scenes import write_shapes
from ciod.runs.dry_run import plan, show
from ciod.training import optim


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("plan") / "shapes", train=20, val=6, size=64)


def load(*words, absent=None, file=None):
    return config.load(file, ["detector=yolox-pico", "size=64", "batch=8", *words], absent=absent)


def test_counts_are_the_tasks(scenes):
    from ciod.data.scenarios.scenario import Scenario
    from ciod.runs.start import open_data

    settings = load(f"data={scenes}", "split=6+4", "epochs=[2, 3]", "lr=0.01", "lr_later=0.004")
    steps = plan(settings)
    tasks = list(Scenario(settings.protocol, *open_data(settings)))
    assert len(steps) == len(tasks) == 2
    for step, task, epochs, lr in zip(steps, tasks, (2, 3), (0.01, 0.004)):
        assert step.classes == task.new_classes and step.images == len(task.train)
        assert (step.boxes, step.hidden) == (len(task.train.labels), task.hidden_boxes)
        assert step.test_images == len(task.test) and (step.epochs, step.lr) == (epochs, lr)
        assert step.steps == epochs * -(-len(task.train) // 8)
        assert step.warmup == optim.warmup_steps(step.steps, settings.train)
    assert steps[1].hidden


def test_steps_are_those_of_a_run_with_a_memory(scenes, tmp_path):
    """A quarter of every batch comes from the memory, so that an epoch has more steps."""
    import ciod

    words = (f"data={scenes}", "split=6+4", "method=finetune", "epochs=1", "memory=6", "memory.share=0.25", "lr=0.01")
    settings = load(*words, f"out={tmp_path / 'run'}", "device=cpu")
    first, second = plan(settings)
    assert (first.steps, second.steps) == (-(-first.images // 8), -(-second.images // 6))
    content = ciod.train(**{**settings.model_dump(exclude_unset=True), "out": str(tmp_path / "run")})
    assert [t.get("steps") for t in content["tasks"]] == [first.steps, second.steps]


def test_learning_rates_fall_where_training_lets_them(scenes):
    settings = load(f"data={scenes}", "split=10", "epochs=12", "schedule=step", "lr=0.02", "warmup=5",
                    "milestones=[0.6666666, 0.9166666]")  # fmt: skip
    (step,) = plan(settings)
    each = step.steps // 12
    assert [(epoch, at) for epoch, at, _ in step.changes] == [(9, 8 * each), (12, 11 * each)]
    assert [rate for _, _, rate in step.changes] == pytest.approx([0.002, 0.0002])
    for _, at, rate in step.changes:
        assert (
            optim.rate(at, step.steps, settings.train, 0.02)
            == rate
            != optim.rate(at - 1, step.steps, settings.train, 0.02)
        )


def test_the_steps_at_which_learning_rates_fall_are_printed(scenes, monkeypatch, tmp_path, capsys):
    words = ("epochs=12", "schedule=step", "lr=0.02", "milestones=[0.6666666, 0.9166666]", "warmup=5")
    show(load(f"data={scenes}", "split=10", *words), [])
    assert "task 1: lr 0.002 from epoch 9 (step 24), lr 0.0002 from epoch 12 (step 33)" in capsys.readouterr().out
    monkeypatch.delenv("COCO", raising=False)
    monkeypatch.chdir(tmp_path)
    absent: list[str] = []
    show(load("scenario=coco-40+40", *words, absent=absent), absent)  # no data: its steps are not known
    assert "task 2: lr 0.002 from epoch 9, lr 0.0002 from epoch 12\n" in capsys.readouterr().out


def test_without_data_classes_and_epochs_are_still_printed(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("COCO", raising=False)
    monkeypatch.chdir(tmp_path)
    absent: list[str] = []
    settings = load("scenario=coco-40+40", "epochs=3", absent=absent)
    first, second = plan(settings)
    assert len(first.classes) == len(second.classes) == 40 and second.classes[9] == "person"
    assert first.images is None and first.epochs == 3
    show(settings, absent)
    output = capsys.readouterr().out
    assert "task 2, 40 classes: kite, knife" in output and "nothing was trained" in output
    assert "missing: data: the environment variable COCO" in output and "write data=FOLDER" in output
    assert list(tmp_path.iterdir()) == []


def test_absent_weights_are_missing_not_wrong(scenes, tmp_path):
    words = (f"data={scenes}", "split=6+4", f"weights={tmp_path / 'no.pth'}")
    absent: list[str] = []
    assert len(plan(load(*words, absent=absent))) == 2
    assert len(absent) == 1 and "detector.weights: there is no file" in absent[0]
    with pytest.raises(config.ConfigError, match="there is no file"):
        load(*words)


def test_errors_stay_errors_in_a_plan(monkeypatch):
    monkeypatch.delenv("COCO", raising=False)
    with pytest.raises(config.ConfigError, match="needs 90 classes, but the data has 80"):
        load("scenario=coco-40+40", "split=40+50", absent=[])
    with pytest.raises(config.ConfigError, match="did you mean 'ilyolox'"):
        load("scenario=coco-40+40", "method=ilyolx", absent=[])


def test_the_command_makes_no_folder(scenes, monkeypatch, tmp_path, capsys):
    import sys

    from ciod import cli

    monkeypatch.setattr(
        sys, "argv", ["ciod", "train", f"data={scenes}", "split=6+4", "--dry-run", f"out={tmp_path}/run"]
    )
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert not done.value.code and not (tmp_path / "run").exists()
    assert "task 1, 6 classes" in capsys.readouterr().out


def test_a_task_that_is_all_warm_up_is_reported(scenes, capsys):
    show(load(f"data={scenes}", "split=6+4", "epochs=1", "schedule=step", "warmup=999", "warmup_share=1"), [])
    assert "all of it is warm-up" in capsys.readouterr().out


def test_an_interim_model_is_part_of_the_plan(scenes, capsys):
    show(load(f"data={scenes}", "split=5+5", "epochs=2", "detector=fasterrcnn-pico", "method=bpf"), [])
    assert "before task 2, an interim model of its classes is trained for as many steps" in capsys.readouterr().out
    show(load(f"data={scenes}", "split=4+3+3", "epochs=2", "detector=fasterrcnn-pico", "method=bpf"), [])
    assert "before each later task, an interim model" in capsys.readouterr().out

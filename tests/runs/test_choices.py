"""What effort chooses for a run: printed with reasons, recorded, kept when the run is resumed."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console

import ciod
from ciod import detectors
from ciod.config import load as config
from ciod.core.distributed import World
from ciod.core.errors import CiodError, ConfigError
from ciod.data.scenarios.scenario import Scenario
from ciod.detectors.files import weights
from ciod.runs import choices
from ciod.runs import run as engine
from ciod.runs.dry_run import show
from ciod.runs.start import open_data
from ciod.training import checkpoint, effort
from ciod.training.progress import Reporter
from tests.runs.commands import Killed, kill_after, results_of, weights_of

WORDS = ["split=6+4", "detector=yolox-pico", "size=64", "log_every=1", "warmup=1", "method=finetune", "device=cpu"]


def load(data: Path, *words: str, out: Path | str = "x") -> config.Run:
    return config.load(None, [*WORDS, f"data={data}", f"out={out}", *words])


def go(data: Path, out: Path, *words: str, hooks=(), until=None) -> str:
    """Trains; returns what was printed."""
    console = Console(width=1000, force_terminal=False, file=io.StringIO())
    engine.train(load(data, *words, out=out), reporter=Reporter(console=console), hooks=hooks, until=until)
    return console.file.getvalue()  # type: ignore[attr-defined]


def complete(data: Path, *words: str, **facts) -> tuple[config.Run, list[str]]:
    settings = load(data, *words)
    scenario = Scenario(settings.protocol, *open_data(settings))
    start = choices.start_of(settings, scenario.task(0).taught_classes)
    return choices.complete(settings, scenario, World(), start, **facts)


# Chosen ---------------------------------------------------------------------------------------------------------------


def test_every_task_has_choices_of_its_own(data):
    run, chosen = complete(data, "effort=quick")
    t = run.train
    assert isinstance(t.epochs, list) and len(t.epochs) == 2 and t.epochs[0] > t.epochs[1] > 0
    assert (t.lr, t.lr_later) == (effort.LR["nothing"], effort.LR_LATER) and t.trunk_lr == 1 and t.backbone_lr is None
    assert chosen[0].startswith("effort=quick: ") and "as the whole network is new" in chosen[0]
    assert [line for line in chosen if line.startswith("task 2: ")] == chosen[-2:]
    assert "learning rate 0.001, for a network that must keep what it knows" in chosen[-1]
    assert choices.open_keys(run) == [] and choices.open_keys(load(data)) == list(effort.KEYS)


def test_a_branch_has_its_own_rate_and_epochs(data):
    branch, plain = (complete(data, "effort=quick", f"method={m}")[0].train for m in ("freeze_branch", "finetune"))
    assert branch.lr_later == effort.LR_BRANCH and branch.lr == plain.lr
    assert isinstance(branch.epochs, list) and isinstance(plain.epochs, list)
    assert branch.epochs[0] == plain.epochs[0] and branch.epochs[1] >= plain.epochs[1]


def test_joint_training_is_chosen_for_all_classes(data):
    joint, chosen = complete(data, "method=joint", "effort=quick")
    assert isinstance(joint.train.epochs, int) and not any("task 2" in line for line in chosen)
    assert complete(data, "method=joint", "joint_epochs=7")[0].train.epochs == 7
    assert complete(data, "method=joint", "steps=[3, 9]", "batch=4")[0].train.epochs == 3


def test_what_is_given_is_not_chosen(data):
    run, chosen = complete(data, "epochs=[3, 4]", "batch=5", "lr=0.5", "trunk_lr=0.3", "ema=0", "flip=0", "mosaic=0.2")
    t, a = run.train, run.augment
    assert (t.epochs, t.batch, t.lr, t.lr_later, t.trunk_lr, t.ema) == ([3, 4], 5, 0.5, None, 0.3, 0)
    assert (a.flip, a.mosaic, a.photometric) == (0, 0.2, 0.5)
    assert "task 2: learning rate 0.5 (as asked)" in chosen
    run, chosen = complete(data, "lr=0.5", "lr_later=0.25")
    assert run.train.lr_later == 0.25 and "task 2: learning rate 0.25 (as asked)" in chosen
    run, chosen = complete(data, "lr_later=0.25")
    assert (run.train.lr, run.train.lr_later) == (effort.LR["nothing"], 0.25)
    settings = config.load(None, {**dict(w.split("=") for w in WORDS), "data": str(data), "train.lr_later": None})
    scenario = Scenario(settings.protocol, *open_data(settings))
    assert choices.complete(settings, scenario, World(), "detector")[0].train.lr_later is None  # the first task's


def test_steps_of_every_task(data):
    run, chosen = complete(data, "steps=[4, 2]", "batch=2")
    scenario = Scenario(run.protocol, *open_data(run))
    each = [-(-len(scenario.task(i).train) // 2) for i in (0, 1)]
    wanted = [-(-4 // each[0]), -(-2 // each[1])]
    assert run.train.epochs in (wanted, wanted[0])
    assert run.train.steps == [4, 2] and "for steps=4 (as asked)" in chosen[0]
    with pytest.raises(CiodError, match=r"train\.steps has 1 entry, but the scenario 2 tasks"):
        complete(data, "steps=[4]")
    with pytest.raises(ConfigError, match=r"train\.steps: the epochs are given too .*; write one of the two"):
        load(data, "steps=4", "epochs=3")


def test_the_start_of_a_run(data, tmp_path):
    def of(*words: str, classes: tuple[str, ...] = ("a", "b")) -> str:
        return choices.start_of(load(data, *words), classes)

    assert of() == of("detector=yolox-r50", "backbone_weights=random") == "nothing"
    assert of("detector=yolox-r50") == "backbone"
    weights.save_model(tmp_path / "m.safetensors", detectors.build(("cat", "hot dog"), name="yolox-nano", size=64))
    start = f"weights={tmp_path / 'm.safetensors'}"
    assert of("detector=yolox-nano", start) == "detector"
    assert of("detector=yolox-nano", start, classes=("cow", "cat")) == "detector"  # half of them are not most
    assert of("detector=yolox-nano", start, classes=("cow", "Hot-dogs", "cat")) == "known"
    assert of("detector=yolox-nano", start, "weights_from=trunk") == of("detector=gfl-nano", start) == "trunk"
    absent: list[str] = []  # a plan needs no weights
    plan = config.load(None, [*WORDS, f"data={data}", f"weights={tmp_path / 'no.pth'}"], absent=absent)
    assert choices.start_of(plan, ("a",)) == "detector"


def test_a_dial_that_is_misspelt(data):
    with pytest.raises(ConfigError, match="effort: 'normall' is not allowed; did you mean 'normal'"):
        load(data, "effort=normall")
    with pytest.raises(ConfigError, match="efort: there is no such setting; did you mean 'effort'"):
        load(data, "efort=quick")


def test_a_plan_says_what_is_chosen(data, capsys, monkeypatch, tmp_path):
    show(load(data, "effort=quick"), [])
    output = capsys.readouterr().out
    assert "effort=quick: " in output and "learning rate 0.002, as the whole network is new" in output
    assert "task 2: learning rate 0.001, for a network that must keep what it knows" in output
    monkeypatch.delenv("COCO", raising=False)
    monkeypatch.chdir(tmp_path)
    absent: list[str] = []
    settings = config.load(None, ["scenario=coco-40+40", "lr=0.01", "schedule=step"], absent=absent)
    show(settings, absent)
    output = capsys.readouterr().out
    assert "effort=normal chooses when the data is available: epochs, batch, trunk_lr" in output and "0.01" in output
    assert "task 2: a tenth of the learning rate after 67%, 92% of the steps" in output


# Trained --------------------------------------------------------------------------------------------------------------


def test_a_run_says_and_records_its_choices(data, tmp_path):
    output = go(data, tmp_path / "run", "steps=2", until=1)
    assert "for steps=2 (as asked)" in output and "batch 3, for " in output
    written = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())
    assert written["effort"] == "normal" and written["train"]["steps"] == 2 and written["train"]["batch"] == 3
    assert any(line.startswith("learning rate 0.002") for line in written["chosen"])
    state = torch.load(tmp_path / "run" / "last" / "state.pt", weights_only=True)
    assert state["chosen"]["train.batch"] == 3 and state["settings"]["train.batch"] == 3


def test_a_resumed_run_keeps_its_choices_on_another_machine(data, tmp_path, monkeypatch):
    go(data, tmp_path / "whole", "steps=4")
    with pytest.raises(Killed):
        go(data, tmp_path / "run", "steps=4", "save_every=1", hooks=kill_after(1, 0))
    monkeypatch.setattr(effort, "BATCH", {"cpu": 4, "cuda": 4})
    monkeypatch.setattr(effort, "LR_LATER", 0.5)
    go(data, tmp_path / "run", "steps=4", "save_every=1")
    a, b = weights_of(tmp_path / "whole"), weights_of(tmp_path / "run")
    assert all(torch.equal(a[k], b[k]) for k in a) and results_of(tmp_path / "whole") == results_of(tmp_path / "run")


def test_another_effort_is_another_run(data, tmp_path):
    go(data, tmp_path / "run", "steps=2", until=1)
    with pytest.raises(CiodError, match=r"other settings \(effort was 'normal', is 'quick'\)\. .*allow=settings"):
        go(data, tmp_path / "run", "steps=2", "effort=quick", until=1)
    assert "steps=2" in go(data, tmp_path / "run", "steps=2", "effort=quick", "allow=settings", until=1)
    with pytest.raises(CiodError, match=r"train\.steps was 2, is 3"):
        go(data, tmp_path / "run", "steps=3", until=1)


OLD = ("epochs=1", "batch=16", "lr=0.002", "trunk_lr=1", "ema=0.998", "flip=0.5", "photometric=0.5",
       "scale=[0.7, 1.3]", "mosaic=0")  # fmt: skip


def aged(folder: Path) -> None:
    """A state as a version wrote it that chose nothing."""
    path = folder / "last" / checkpoint.NEWEST
    state = torch.load(path, weights_only=True)
    for key in ("effort", "chosen"):
        del state[key]
    del state["settings"]["train.steps"]
    checkpoint.save_state(path, state)


def test_a_run_of_an_older_version_keeps_its_defaults(data, tmp_path):
    go(data, tmp_path / "run", *OLD, until=1)
    aged(tmp_path / "run")
    go(data, tmp_path / "run", "epochs=1")
    written = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())
    assert (written["train"]["batch"], written["train"]["lr"], written["train"]["lr_later"]) == (16, 0.002, None)
    assert "chosen" not in written and (tmp_path / "run" / "task-2" / "model.safetensors").is_file()
    with pytest.raises(CiodError, match=r"train\.lr was 0\.002, is 0\.01"):
        go(data, tmp_path / "run", "epochs=1", "lr=0.01")


def test_what_an_older_run_was_given_has_to_be_given_again(data, tmp_path):
    go(data, tmp_path / "run", *OLD, "lr=0.03", until=1)
    aged(tmp_path / "run")
    with pytest.raises(CiodError, match=r"train\.lr was 0\.03, is 0\.002"):
        go(data, tmp_path / "run", "epochs=1")


def test_a_first_task_that_is_taken_over_was_chosen_once(data, tmp_path, monkeypatch):
    go(data, tmp_path / "first", "steps=2", until=1)
    monkeypatch.setattr(effort, "BATCH", {"cpu": 4, "cuda": 4})
    monkeypatch.setattr(effort, "LR", dict.fromkeys(effort.LR, 0.5))
    monkeypatch.setattr(effort, "LR_LATER", 0.004)
    go(data, tmp_path / "run", "steps=2", f"first={tmp_path / 'first'}")
    t = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())["train"]
    assert (t["batch"], t["lr"], t["lr_later"]) == (3, 0.002, 0.004)
    a, b = weights_of(tmp_path / "first", 1), weights_of(tmp_path / "run", 1)
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_python_takes_it_too(data, tmp_path):
    results = ciod.train(data=str(data), split="6+4", detector="yolox-pico", size=64, steps=1, effort="quick",
                         method="finetune", device="cpu", out=str(tmp_path / "run"))  # fmt: skip
    assert [task.get("epochs") for task in results["tasks"]] == [1, 1]


def test_recipes_of_papers_and_the_demo_leave_nothing_to_choose():
    from ciod.demo import SETTINGS

    for name in config.recipes():
        run = config.load(name, [], absent=[])
        follows = ["train.epochs"] if run.train.steps else []  # from the steps and the number of images
        assert choices.open_keys(run) == follows, name
    assert choices.open_keys(config.load(None, SETTINGS)) == []

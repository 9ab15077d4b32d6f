"""The best epoch: which pictures choose it, which weights are kept, when training ends, and that it resumes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ciod.comparison import plan
from ciod.config.load import Run
from ciod.core.errors import CiodError, ConfigError
from ciod.data.formats import read
from ciod.data.scenarios.scenario import Scenario
from ciod.data.shapes.scenes import write_shapes
from ciod.extension import settings as extension
from ciod.runs import run as engine
from ciod.training import keep, optim
from ciod.training.hooks import Hooks
from tests.runs.commands import Killed, assert_equal, go, kill_after, results_of, settings, weights_of


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("keep") / "data", train=12, val=4, size=64)


def task(data, index=0):
    run = Run.model_validate({"protocol": {"split": "6+4"}})
    return Scenario(run.protocol, read(str(data), "train"), read(str(data), "val")).task(index)


def test_held_out_pictures_are_training_pictures_that_are_not_trained_on(data):
    whole = task(data)
    rest, held = keep.cut(whole, 0.25, seed=3)

    def names(index):
        return {str(p) for p in index.files}

    assert len(held) == round(len(whole.train) * 0.25) > 0
    assert names(held) | names(rest.train) == names(whole.train) and not names(held) & names(rest.train)
    assert rest.test is whole.test and not names(held) & names(whole.test)
    again, other = keep.cut(whole, 0.25, seed=3)[1], keep.cut(whole, 0.25, seed=4)[1]
    assert names(again) == names(held) != names(other)


@pytest.mark.parametrize(("share", "what"), [(0.001, "this is none"), (0.999, "this is all")])
def test_a_share_that_leaves_nothing(data, share, what):
    with pytest.raises(CiodError, match=rf"train.best={share:g}: of \d+ training pictures of task 1 {what}"):
        keep.cut(task(data), share, 0)


def test_held_out_pictures_without_boxes(data):
    whole = task(data)
    empty = replace(whole, train=whole.train.select(boxes=np.zeros(len(whole.train.labels), bool)))
    with pytest.raises(CiodError, match="of task 1 held out, and no box is on them; choose a larger share"):
        keep.cut(empty, 0.25, 0)


def keeper(scores, patience=None):
    given = iter(scores)
    return keep.Keeper(lambda detector, pictures: next(given), pictures=range(5), patience=patience)


def trained(scores, patience=None):
    """Epochs that were trained, the keeper, and the weight, which is the number of the epoch."""
    made, net = keeper(scores, patience), nn.Linear(1, 1)
    for epoch in range(1, len(scores) + 1):
        nn.init.constant_(net.weight, epoch)
        made.look(net, None)
        if made.stops:
            break
    made.finish(net)
    return len(made.scores), made, float(net.weight.detach())


@pytest.mark.parametrize(
    ("scores", "patience", "epochs", "kept"),
    [
        ([0.1, 0.3, 0.2], None, 3, 2),
        ([0.1, 0.3, 0.3], None, 3, 3),  # of equal ones the last
        ([0.1, 0.3, 0.2, 0.2, 0.9], 2, 4, 2),
        ([0.1, 0.3, 0.3, 0.3, 0.9], 2, 4, 4),  # an equal AP is not an improvement
        ([0.0, 0.0, None, 0.0, 0.2, 0.1, 0.1, 0.5], 2, 7, 5),  # nothing found yet: patience has not started
        ([0.0, 0.0], 1, 2, 2),
    ],
)
def test_which_epoch_is_kept_and_when_training_ends(scores, patience, epochs, kept):
    done, made, weight = trained(scores, patience)
    assert (done, made.epoch + 1, weight) == (epochs, kept, kept)


def test_the_sentence_about_the_kept_epoch():
    _, made, _ = trained([0.1, 0.3, 0.2, 0.2, 0.9], 2)
    assert keep.sentence(made.result(5)) == (
        "epoch 2 of 5 is kept: highest AP (30.0) on 5 held-out pictures; 1 further epoch left out after 2 without a "
        "higher AP"
    )
    assert made.result(4)["why"] == "highest AP (30.0) on 5 held-out pictures"


def test_averaged_weights_are_scored_and_the_student_stays_unchanged():
    net = nn.Linear(1, 1)
    nn.init.constant_(net.weight, 1.0)
    ema, seen = optim.EMA(net, 0.9), []
    nn.init.constant_(net.weight, 3.0)
    ema.update(net)
    average = float(ema.state["weight"])
    made = keep.Keeper(lambda d, _: seen.append(float(d.weight.detach())) or 0.5, pictures=range(1))
    made.look(net, ema)
    assert seen == [average] != [3.0] and float(net.weight.detach()) == 3.0 and float(made.weights["weight"]) == average


def test_a_state_brings_everything_back():
    made, net = keeper([0.1, 0.3, 0.2], 2), nn.Linear(1, 1)
    for _ in range(2):
        made.look(net, None)
    other = keeper([0.2], 2)
    other.load_state(made.state(), torch.device("cpu"))
    other.look(net, None)
    made.look(net, None)
    assert other.result(3) == made.result(3) and other.since == made.since


BEST = ["best=0.3", "epochs=3", "ema=0"]


def score(detector, pictures, **_):
    """Stands in for AP, which is 0 after so few steps: any other weights give any other score."""
    last = [v for v in detector.state_dict().values() if v.is_floating_point()][-1]
    return float(last.double().abs().sum() * 1e4 % 1) * 0.9 + 0.05


class Epochs(Hooks):
    """Keeps the weights after each epoch."""

    def __init__(self):
        self.seen: dict = {}

    def on_epoch(self, at, epoch):
        self.seen[at.task, epoch + 1] = {k: v.clone() for k, v in at.detector.state_dict().items()}


@pytest.fixture(scope="module")
def scored(data, tmp_path_factory):
    """A run of three epochs, and the weights after each."""
    epochs = Epochs()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "ap", score)
        return go(data, tmp_path_factory.mktemp("best") / "run", *BEST, hooks=[epochs]), epochs.seen


def test_a_run_keeps_its_best_epoch_and_says_so(scored):
    out, seen = scored
    for i, entry in enumerate(results_of(out)["tasks"]):
        kept = entry["kept"]
        assert kept["scores"][kept["epoch"] - 1] == max(kept["scores"]) and len(set(kept["scores"])) == 3
        assert entry["epochs"] == kept["planned"] == 3
        model = weights_of(out, i + 1)
        assert all(torch.equal(model[k], v) for k, v in seen[i, kept["epoch"]].items())
        page = (out / "report.html").read_text()
        assert f"Task {i + 1}: epoch {kept['epoch']} of 3 is kept: highest AP (" in page


def test_the_next_task_starts_from_the_kept_weights_and_is_taught_by_them(data, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "ap", score)
    seen = {}

    class Look(Hooks):
        def on_task(self, at):
            if at.task:
                seen["student"] = {k: v.clone() for k, v in at.detector.state_dict().items()}
                seen["teacher"] = at.method.teacher.detector.state_dict()

    out = go(data, tmp_path / "run", *BEST, "teacher=exact", hooks=[Look()])
    first = weights_of(out, 1)
    assert results_of(out)["tasks"][0]["kept"]["epoch"] in (1, 2, 3)
    for where in ("student", "teacher"):
        same = [k for k, v in first.items() if seen[where][k].shape == v.shape]
        assert len(same) > 20 and all(torch.equal(seen[where][k], first[k]) for k in same), where


@pytest.mark.parametrize("more", [[], ["save_every=1"]], ids=["at an epoch's end", "inside an epoch"])
def test_killed_and_resumed_it_keeps_the_same_epoch(scored, data, tmp_path, monkeypatch, more):
    whole, _ = scored
    monkeypatch.setattr(engine, "ap", score)
    steps = results_of(whole)["tasks"][1]["steps"] // 3
    with pytest.raises(Killed):
        go(data, tmp_path / "run", *BEST, *more, hooks=kill_after(1, 2 * steps + (1 if more else 0)))
    assert_equal(go(data, tmp_path / "run", *BEST, *more), whole)


def test_killed_in_the_evaluation_of_an_epoch(scored, data, tmp_path, monkeypatch):
    whole, _ = scored

    def broken(detector, pictures, **given):
        if len(given["classes"]) == 4 and not done:  # of the second task
            done.append(1)
            raise Killed
        return score(detector, pictures)

    done: list[int] = []
    monkeypatch.setattr(engine, "ap", broken)
    with pytest.raises(Killed):
        go(data, tmp_path / "run", *BEST)
    assert_equal(go(data, tmp_path / "run", *BEST), whole)


def test_a_run_with_other_settings_is_refused(scored, data):
    with pytest.raises(CiodError, match=r"train\.best was 0\.3, is 0\.4"):
        go(data, scored[0], *BEST, "best=0.4")


def test_a_task_ends_early_and_the_next_has_all_its_epochs(data, tmp_path, monkeypatch):
    falling = iter([0.5, 0.4, 0.1, 0.2, 0.3])
    monkeypatch.setattr(engine, "ap", lambda *_, **__: next(falling))
    out = go(data, tmp_path / "run", *BEST, "patience=1", "log_every=100")
    first, second = results_of(out)["tasks"]
    assert (first["epochs"], first["kept"]["epoch"], first["kept"]["planned"]) == (2, 1, 3)
    assert (second["epochs"], second["kept"]["epoch"]) == (3, 3)
    assert "1 further epoch left out after 1 without a higher AP" in first["kept"]["why"]


def test_the_real_score_is_the_ap_of_the_tasks_classes(data, tmp_path):
    out = go(data, tmp_path / "run", "best=0.3", "epochs=1")
    assert [len(t["kept"]["scores"]) for t in results_of(out)["tasks"]] == [1, 1]
    assert all(0 <= t["kept"]["scores"][0] <= 1 for t in results_of(out)["tasks"])


def test_patience_needs_pictures(data, tmp_path):
    match = "train.patience: there are no held-out pictures to measure on; write best=0.1"
    with pytest.raises(ConfigError, match=match):
        settings(data, tmp_path, "patience=2")
    with pytest.raises(ConfigError, match=match):
        extension.load({"model": "a.safetensors", "data": str(data), "train.patience": 2})
    with pytest.raises(ConfigError, match="patience: with equal_steps=true no row may end earlier"):
        plan.build(
            methods="finetune,joint", equal_steps=True, out=tmp_path, settings={"train.patience": 2, "train.best": 0.1}
        )

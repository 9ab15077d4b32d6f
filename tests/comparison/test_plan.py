"""What a comparison would train: labels, seeds, bounds, and keys that change with everything that matters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from ciod.comparison import identity, outcome, plan
from ciod.comparison import settings as words
from ciod.comparison.worker import MARK
from ciod.core.errors import CiodError, ConfigError
from ciod.runs import choices, environment
from ciod.training import effort

from .conftest import SETTINGS


def build(scenes: Path, out: Path, methods="finetune,ilyolox", **given):
    own = {
        k: given.pop(k)
        for k in ("seeds", "blocks", "equal_steps", "gate", "margin", "upper", "against", "cache", "scenario")
        if k in given
    }
    return plan.build(
        own.pop("scenario", None), methods=methods, out=out, settings={"data": str(scenes), **SETTINGS, **given}, **own
    )


def first_of(made: plan.Plan) -> plan.Cell:
    return next(c for c in made.cells if c.kind == "first")


def test_labels_tell_variants_apart():
    found = words.entries(
        [
            "finetune",
            "ilyolox",
            {"name": "ilyolox", "nms_iou": 0.65},
            {"name": "ilyolox", "nms_iou": 0.95, "detach_weights": False},
            {"name": "pseudo_label", "score": 0.5},
            {"name": "ilyolox", "weighted": False, "label": "no CKD weights"},
            {"name": "papers/mine.py:Mine"},
        ]
    )
    assert [e.label for e in found] == [
        "finetune",
        "ilyolox",
        "ilyolox (nms_iou=0.65)",
        "ilyolox (nms_iou=0.95, detach_weights=false)",
        "pseudo_label",
        "no CKD weights",
        "Mine",
    ]
    assert found[5].settings == {"weighted": False}
    assert [e.name for e in words.entries("finetune, joint")] == ["finetune", "joint"]


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ("", "methods= is needed"),
        ("ilyolox,ilyolox", "two entries 'ilyolox'"),
        ([{"nms_iou": 0.5}], "neither a method's name nor a mapping"),
        ([3], "neither a method's name nor a mapping"),
    ],
)
def test_methods_that_cannot_be_read(methods, message):
    with pytest.raises(ConfigError, match=message):
        words.entries(methods)


@pytest.mark.parametrize(("given", "seeds"), [(3, [0, 1, 2]), ([4, 7], [4, 7]), ("4,7", [4, 7]), (1, [0])])
def test_seeds(given, seeds):
    assert words.seeds_of(given) == seeds


@pytest.mark.parametrize("given", [0, -1, True, [], [1, 1], [-1], "many", "1,x", [0.5]])
def test_no_seeds(given):
    with pytest.raises(ConfigError, match=r"seeds: .* must say how many seeds \(1 to 1,000\), or list"):
        words.seeds_of(given)


def test_a_comparison_of_nothing_but_failures_outside_a_checkout(scenes, tmp_path, monkeypatch, capsys):
    from rich.console import Console

    monkeypatch.setattr(environment, "commit", lambda: None)
    made = build(scenes, tmp_path / "out", "finetune", seeds=2, upper=None)
    failed = {c.name: "a test" for c in made.cells}
    content = outcome.write(made, failed)
    page = (tmp_path / "out" / "compare.html").read_text()
    assert content["commit"] is None and "<dt>Commit</dt><dd>not a checkout</dd>" in page
    outcome.show(made, content, Console(width=200))
    output = capsys.readouterr().out
    assert "failed: finetune, seed 1: a test" in output
    assert f"mean ± standard deviation over 2 seeds; page: {tmp_path / 'out' / 'compare.html'}" in output


def test_two_tasks_need_only_the_final_joint_model(scenes, tmp_path):
    made = build(scenes, tmp_path / "out", seeds=2)
    assert made.upper == "final"
    assert [c.name for c in made.cells] == [
        f"{n}-seed{s}" for s in (0, 1) for n in ("first", "joint", "finetune", "ilyolox")
    ]
    first, _, tuned, _ = made.cells[:4]
    assert first.until == 1 and tuned.settings.first == str(first.folder) and tuned.needs == (first.name,)
    assert {e.label for e, _, _ in plan.pairs(made)} == {"finetune", "ilyolox"}, "joint is a row when it is listed"
    assert [c.seed for c in made.bounds(1)] == [1]


def test_more_tasks_get_a_joint_model_for_every_prefix(scenes, tmp_path):
    made = build(scenes, tmp_path / "out", "finetune,joint", split="4+3+3")
    joint = made.bounds(0)
    assert made.upper == "prefixes" and [c.tasks for c in joint] == [2, 3]
    assert [len(c.facts["groups"]) for c in joint] == [2, 3]
    assert joint[0].settings.protocol.joint and joint[0].settings.protocol.split == [
        list(g) for g in made.scenario.groups[:2]
    ]
    assert made.of(made.entries[1], 0) is joint[1]
    assert [c.tasks for c in build(scenes, tmp_path / "out", split="4+3+3", upper="final").bounds(0)] == [3]
    assert build(scenes, tmp_path / "out", upper="none").bounds(0) == []
    assert len(build(scenes, tmp_path / "out", "finetune,joint", upper="none").bounds(0)) == 1


def test_one_task_has_neither_first_nor_bound(scenes, tmp_path):
    made = build(scenes, tmp_path / "out", split="all")
    assert [c.kind for c in made.cells] == ["run", "run"] and made.upper == "none"


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 1e-3},
        {"epochs": 2},
        {"epochs": [2, 1]},
        {"size": 96},
        {"detector": "yolox-nano"},
        {"seeds": [1]},
        {"split": "5+5"},
        {"split": "6+3"},
        {"order": "seed:1"},
        {"boxes": "seen"},
        {"augment.flip": 0.1},
        {"head": "full"},
        {"score_threshold": 0.01},
    ],
)
def test_a_changed_setting_never_finds_the_old_first_task(scenes, tmp_path, change):
    assert first_of(build(scenes, tmp_path / "a")).key != first_of(build(scenes, tmp_path / "a", **change)).key


@pytest.mark.parametrize(
    "change",
    [
        {"methods": "finetune"},
        {"methods": [{"name": "ilyolox", "nms_iou": 0.6}]},
        {"lr_later": 1e-4},
        {"joint_epochs": 7},
        {"epochs": [1, 5]},
        {"workers": 1},
        {"teacher": "exact"},
        {"seeds": 2},
        {"upper": "none"},
    ],
)
def test_what_only_later_tasks_need_shares_the_first(scenes, tmp_path, change):
    same = build(scenes, tmp_path / "b", cache=tmp_path / "a", **change)
    one = first_of(build(scenes, tmp_path / "a"))
    assert first_of(same).key == one.key and first_of(same).folder == one.folder


def test_memory_and_pool_are_of_all_rows_or_of_one(scenes, tmp_path):
    """The first task is there before both, and the same."""
    pool = tmp_path / "pictures"
    pool.mkdir()
    rows = [
        "finetune",
        "ilyolox",
        {"name": "ilyolox", "memory": 5, "memory.select": "herding"},
        {"name": "ilyolox", "memory": {"size": 7, "labels": "completed"}},
        {"name": "distill_pool", "pool": str(pool), "weight": 2},
    ]
    plain, mixed = build(scenes, tmp_path / "out"), build(scenes, tmp_path / "out", rows)
    every = build(scenes, tmp_path / "out", "ilyolox,distill_pool", pool=str(pool), memory=5, **{"memory.share": 0.2})
    assert first_of(plain).key == first_of(mixed).key == first_of(every).key
    own = [c.settings for c in mixed.cells if c.kind == "run"]
    assert [s.memory.size for s in own] == [0, 0, 5, 7, 0]
    assert [s.memory.select for s in own[1:3]] == ["random", "herding"] and own[3].memory.labels == "completed"
    assert [str(s.pool.folder) for s in own] == ["None"] * 4 + [str(pool)] and own[4].method["weight"] == 2
    assert mixed.entries[2].label == "ilyolox (memory=5, memory.select=herding)"
    assert all(c.settings.memory.size == 5 and c.settings.pool.folder for c in every.cells if c.kind == "run")
    with pytest.raises(ConfigError, match=r"memory\.sise"):
        build(scenes, tmp_path / "out", [{"name": "ilyolox", "memory.sise": 5}])
    with pytest.raises(ConfigError, match="pool: finetune has no teacher"):
        build(scenes, tmp_path / "out", [{"name": "finetune", "pool": str(pool)}])


def test_the_data_is_part_of_the_key(scenes, tmp_path):
    from ciod.data import formats

    index = formats.read(scenes, "train")
    before = identity.fingerprint(index)
    assert identity.fingerprint(formats.read(scenes, "train")) == before
    index.boxes[0, 0] += 1
    assert identity.fingerprint(index) != before
    fewer = index.select(images=index.image[:0])
    assert identity.fingerprint(fewer) not in (before, identity.fingerprint(index))


def test_a_file_of_the_data_that_changes_its_size(tmp_path):
    from ciod.data import formats
    from ciod.data.shapes.scenes import write_shapes

    folder = write_shapes(tmp_path / "data", train=3, val=1, size=64)
    index = formats.read(folder, "train")
    before = identity.fingerprint(index)
    with index.files[0].open("ab") as f:
        f.write(b"x")
    assert identity.fingerprint(index) != before


def test_the_code_is_part_of_the_key(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text("a = 1")
    before, first = identity.source(f"{mine}:Mine"), identity.source(None)
    assert before != identity.source("ilyolox") != first
    mine.write_text("a = 2")
    assert identity.source(f"{mine}:Mine") != before and identity.source(None) == first


def test_a_weights_file_counts_by_its_content(tmp_path):
    path = tmp_path / "w.pth"
    path.write_bytes(b"one")
    one = identity._file(str(path))
    path.write_bytes(b"two")
    assert one != identity._file(str(path)) and identity._file(None) is None


def test_every_problem_at_once(scenes, tmp_path):
    with pytest.raises(ConfigError) as e:
        build(scenes, tmp_path, "finetun,ilyolox", seeds=0, upper="all", epoch=3, seed=1, first="x", nms_iou_x=1)
    message = str(e.value)
    for part in (
        "no method 'finetun'; did you mean 'finetune'?",
        "seeds: 0 must say how many seeds",
        "upper: 'all' is not allowed",
        "did you mean 'epochs'?",
        "seed: not a setting of a comparison; seeds=3 means",
        "first: not a setting of a comparison",
        "nms_iou_x: there is no such setting",
    ):
        assert part in message, message
    with pytest.raises(
        ConfigError,
        match=r"method.nms_iou: this setting belongs to a method\. Write methods='\[\{name: ilyolox, nms_iou: 0.6\}",
    ):
        build(scenes, tmp_path, **{"method.nms_iou": 0.6})
    with pytest.raises(ConfigError, match="there is nothing to compare but joint"):
        build(scenes, tmp_path, "joint")
    with pytest.raises(ConfigError, match="there is no scenario 'shapes-6\\+5'; did you mean 'shapes-6\\+4'"):
        plan.build("shapes-6+5", methods="finetune")


def test_a_scenario_may_be_a_file_of_settings_or_of_a_protocol(scenes, tmp_path):
    settings = tmp_path / "settings.yaml"
    settings.write_text(
        yaml.safe_dump({"data": str(scenes), **SETTINGS, "method": {"name": "ilyolox", "nms_iou": 0.5}})
    )
    made = plan.build(settings, methods="finetune", out=tmp_path / "out", settings={"epochs": 3})
    assert made.settings.train.epochs == 3 and made.settings.method == {"name": "finetune"}
    protocol = tmp_path / "mine.yaml"
    protocol.write_text(yaml.safe_dump({"description": "Mine.", "data": str(scenes), "split": "5+5"}))
    made = plan.build(protocol, methods="finetune", out=tmp_path / "out", settings={"detector": "yolox-pico"})
    assert made.settings.protocol.name == "mine" and [len(g) for g in made.scenario.groups] == [5, 5]


def test_recipes_can_be_compared_and_keep_their_method_settings(scenes, tmp_path):
    small = {"data": str(scenes), "scenario": "shapes-6+4", **{k: v for k, v in SETTINGS.items() if k != "split"}}
    made = plan.build(
        "coco-40+40-erd", methods="finetune,erd", out=tmp_path / "a", settings={**small, "detector": "gfl-pico"}
    )
    assert made.entries[1].settings == {"nms_scale": "stride"} and made.settings.train.optimizer == "sgd"
    runs = {c.label: c.settings for c in made.cells if c.kind == "run"}
    assert (
        runs["erd"].method == {"name": "erd", "nms_scale": "stride"} and runs["finetune"].method["name"] == "finetune"
    )
    rows = ["coco-40+40-lwf", {"name": "coco-40+40-erd", "nms_scale": "pixel", "label": "mine"}]
    made = plan.build(None, methods=rows, out=tmp_path / "b", settings={**small, "detector": "gfl-pico"})
    assert [e.label for e in made.entries] == ["coco-40+40-lwf", "mine"]
    assert made.entries[1].settings["nms_scale"] == "pixel" and made.settings.train.milestones == [0.6666666, 0.9166666]
    with pytest.raises(ConfigError, match=r"the recipe coco-40\+40-ilyolox has other settings than this comparison \("):
        plan.build(None, methods="coco-40+40-erd,coco-40+40-ilyolox", out=tmp_path / "c", settings=small)


def test_a_settings_file_keeps_the_settings_of_its_method(scenes, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"data": str(scenes), **SETTINGS, "method": {"name": "ilyolox", "nms_iou": 0.5}}))
    made = plan.build(path, methods=["ilyolox", {"name": "ilyolox", "nms_iou": 0.9}, "lwf"], out=tmp_path / "out")
    assert [e.settings for e in made.entries] == [{"nms_iou": 0.5}, {"nms_iou": 0.9}, {}]


def test_a_file_may_contain_the_complete_comparison(scenes, tmp_path):
    path = tmp_path / "mine.yaml"
    methods = ["finetune", {"name": "ilyolox", "nms_iou": 0.5, "label": "mine"}]
    content = {"data": str(scenes), **SETTINGS, "methods": methods, "seeds": 2, "against": "mine", "lr": 0.5}
    path.write_text(yaml.safe_dump(content))
    scenario, own, settings = words.opened(path, {"seeds": 3}, {"train": {"lr": 0.1}, "epochs": 4})
    made = plan.build(scenario, settings=settings, out=tmp_path / "out", **own)
    assert [e.label for e in made.entries] == ["finetune", "mine"] and made.seeds == [0, 1, 2]
    assert made.against == "mine" and made.settings.train.lr == 0.1 and made.settings.train.epochs == 4
    path.write_text(yaml.safe_dump({**content, "methods": "finetune", "methodz": 1}))
    scenario, own, settings = words.opened(path, {}, {})
    with pytest.raises(ConfigError, match=r"methodz: there is no such setting(.|\n)*none of the methods is 'mine'"):
        plan.build(scenario, settings=settings, out=tmp_path / "out", **own)
    with pytest.raises(ConfigError, match="against: none of the methods is 'joint'"):
        build(scenes, tmp_path / "out", "finetune,joint", against="joint")
    path.write_text("methods: [")
    with pytest.raises(ConfigError, match=r"mine\.yaml is not YAML"):
        words.opened(path, {}, {})
    assert words.opened("shapes-6+4", {"seeds": 1}, {"lr": 1}) == ("shapes-6+4", {"seeds": 1}, {"lr": 1})


def test_a_folder_with_other_settings_is_refused(scenes, tmp_path):
    made = build(scenes, tmp_path / "out")
    run = made.cells[-1]
    run.folder.mkdir(parents=True)
    (run.folder / MARK).write_text(json.dumps({"key": run.key, "facts": run.facts, "finished": True}))
    assert build(scenes, tmp_path / "out").warnings == []
    with pytest.raises(CiodError, match=r"holds a run with other settings \(train.lr was .* is 0.5"):
        build(scenes, tmp_path / "out", lr=0.5)
    theirs = {**run.facts, "ciod": "0.0.9 older"}
    (run.folder / MARK).write_text(json.dumps({"key": identity.key(theirs), "facts": theirs, "finished": True}))
    made = build(scenes, tmp_path / "out")
    assert "started with different code or on a different device (ciod 0.0.9 older)" in made.warnings[0]
    assert made.cells[-1].key == identity.key(theirs), "a finished run stays finished"


def test_a_scenario_of_only_joint_training(scenes, tmp_path):
    with pytest.raises(ConfigError, match="joint: write methods=joint,… for the upper bound"):
        build(scenes, tmp_path, **{"protocol.joint": True})


def test_every_run_has_the_choices_of_effort(scenes, tmp_path, monkeypatch):
    """With all left open the first task is shared, a branch has its own rate, joint training its own epochs."""
    left = {k: v for k, v in SETTINGS.items() if k not in ("epochs", "batch")}
    monkeypatch.setitem(globals(), "SETTINGS", left)
    made = build(scenes, tmp_path / "out", "finetune,freeze_branch,joint", effort="quick")
    assert not any(choices.open_keys(c.settings) for c in made.cells)
    runs = {c.label: c.settings for c in made.cells if c.kind != "first"}
    first = first_of(made)
    for run in (runs["finetune"], runs["freeze_branch"]):
        theirs, mine = (environment.fingerprint(s) for s in (first.settings, run))
        assert environment.first_task(theirs) == environment.first_task(mine)
    assert runs["finetune"].train.lr_later == effort.LR_LATER
    assert runs["freeze_branch"].train.lr_later == effort.LR_BRANCH
    assert isinstance(runs["joint"].train.epochs, int) and isinstance(runs["finetune"].train.epochs, list)
    text = "\n".join(outcome.announcement(made))
    assert "effort=quick: " in text and "task 2: learning rate" in text
    assert build(scenes, tmp_path / "other", "finetune", lr=0.1).cells[0].settings.train.lr == 0.1
    more = build(scenes, tmp_path / "out", "finetune,freeze_branch,joint", effort="thorough")
    assert first_of(more).key != first.key


def test_a_run_of_an_older_version_keeps_its_defaults(scenes, tmp_path, monkeypatch):
    left = {k: v for k, v in SETTINGS.items() if k != "batch"}
    monkeypatch.setitem(globals(), "SETTINGS", left)
    (cell,) = (c for c in build(scenes, tmp_path / "out", "finetune").cells if c.kind == "run")
    assert cell.settings.train.batch != 16
    old = {"train.batch": 16, "train.lr": 0.002, "train.trunk_lr": 1.0, "augment.scale": [0.7, 1.3]}
    facts = {
        **cell.facts,
        "settings": {k: v for k, v in {**cell.facts["settings"], **old}.items() if k != "train.steps"},
    }
    facts["settings"]["train.lr_later"] = None
    cell.folder.mkdir(parents=True)
    (cell.folder / MARK).write_text(json.dumps({"key": "x", "finished": True, "facts": facts}))
    (cell,) = (c for c in build(scenes, tmp_path / "out", "finetune").cells if c.kind == "run")
    assert (cell.settings.train.batch, cell.settings.train.lr, cell.settings.train.lr_later) == (16, 0.002, None)

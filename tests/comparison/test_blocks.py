"""Block designs: fold, class order and seed of each repetition, equal steps, and the parts of a comparison."""

from __future__ import annotations

import pytest

import ciod
from ciod.comparison import blocks, outcome, schedule
from ciod.comparison import settings as words
from ciod.comparison.blocks import Block, blocks_of
from ciod.core.errors import CiodError, ConfigError

from .test_plan import build as build_seeds
from .test_plan import plan


def build(scenes, out, methods="finetune,ilyolox", **given):
    return build_seeds(scenes, out, methods, **given)


def test_a_number_gives_every_block_its_fold_order_and_seed():
    found = blocks_of(4, {"protocol.folds": 3})
    assert [b.seed for b in found] == [0, 1, 2, 3]
    assert [b.settings["protocol.fold"] for b in found] == [1, 2, 3, 1]
    assert [b.settings["protocol.order"] for b in found] == [f"seed:{i}" for i in range(4)]
    assert blocks_of("2", {}) == [Block(0, {"protocol.order": "seed:0"}), Block(1, {"protocol.order": "seed:1"})]
    named = blocks_of(2, {"protocol.folds": 2, "protocol.split": [["a"], ["b"]]})
    assert [b.settings for b in named] == [{"protocol.fold": 1}, {"protocol.fold": 2}]


def test_blocks_can_be_listed():
    found = blocks_of("[{fold: 2, order: 'seed:9', seed: 7}, {seed: 3}]", {"protocol.folds": 2})
    assert found == [Block(7, {"protocol.fold": 2, "protocol.order": "seed:9"}), Block(3)]
    assert found[0].words() == "seed 7, fold 2, order seed:9"
    assert Block(1, {"protocol.order": ["a", "b"]}).words() == "seed 1, order a+b"
    assert found[0].content() == {"seed": 7, "fold": 2, "order": "seed:9"}


def test_a_file_may_hold_the_blocks(scenes, tmp_path):
    for content in ("2", "[{seed: 4, fold: 1}, {seed: 5, fold: 2, order: 'seed:3'}]"):
        path = tmp_path / "mine.yaml"
        path.write_text(f"data: {scenes}\nsplit: 6+4\nfolds: 2\nblocks: {content}\nmethods: [finetune]\n")
        scenario, own, settings = words.opened(path, {}, {})
        own, problems = words.own_settings(own)
        assert not problems
        made = plan.build(scenario, settings=settings, out=tmp_path / "out", **own)
        assert [b.settings["protocol.fold"] for b in made.blocks] == [1, 2]
    assert made.blocks[1] == Block(5, {"protocol.fold": 2, "protocol.order": "seed:3"})


@pytest.mark.parametrize(
    ("given", "base", "message"),
    [
        (0, {}, r"blocks: 0 must be a number from 1 to 1,000, or a list such as"),
        ("[", {}, r"blocks: '\['"),
        (["x"], {}, r"blocks: the entry 1 \('x'\) is not a mapping"),
        ([{"seed": 1, "flod": 2}], {}, r"blocks: the entry 1 has no setting 'flod'; did you mean 'fold'"),
        ([{"fold": 1}], {}, r"blocks: the entry 1 needs a seed"),
        ([{"seed": 1}, {"seed": 1}], {}, r"blocks: two blocks have seed 1; a block is named by its seed"),
        ([{"seed": 1, "order": "seed:1"}], {"protocol.split": [["a"]]}, r"the entry 1 has an order, but split="),
        ([{"seed": 1, "fold": 1}], {"protocol.fold": 1}, r"fold: the blocks have their own fold; leave fold= out"),
        (2, {"protocol.order": "dataset"}, r"order: blocks=2 gives every block its own order"),
        (2, {"protocol.folds": 2, "protocol.fold": 1}, r"fold: blocks=2 gives every block its own fold"),
    ],
)
def test_blocks_that_cannot_be_read(given, base, message):
    with pytest.raises(ConfigError, match=message):
        blocks_of(given, base)


def test_uneven_folds_are_named():
    (warning,) = blocks.warnings(blocks_of(3, {"protocol.folds": 2}), 2)
    assert "(fold 1: 2, fold 2: 1); a multiple of 2 blocks" in warning
    assert blocks.warnings(blocks_of(4, {"protocol.folds": 2}), 2) == [] == blocks.warnings(blocks_of(3, {}), None)


def test_all_methods_of_a_block_share_its_fold_order_and_first_task(scenes, tmp_path):
    made = build(scenes, tmp_path / "out", blocks=4, folds=2)
    assert made.seeds == [0, 1, 2, 3]
    for seed in made.seeds:
        first, joint, *runs = (c for c in made.cells if c.seed == seed)
        assert (first.kind, joint.kind, [c.label for c in runs]) == ("first", "joint", ["finetune", "ilyolox"])
        assert {c.settings.first for c in runs} == {str(first.folder)}
        for cell in (first, joint, *runs):
            protocol = cell.settings.protocol
            assert (protocol.fold, protocol.order, cell.settings.seed) == (seed % 2 + 1, f"seed:{seed}", seed)
            assert cell.facts["groups"][0] == list(made.scenarios[seed].groups[0])
    assert len({c.folder for c in made.cells}) == len(made.cells)
    tested = [{f.name for f in made.scenarios[s].test.files} for s in made.seeds]
    assert tested[0] == tested[2] and tested[1] == tested[3] and not tested[0] & tested[1]
    assert made.scenarios[0].groups != made.scenarios[2].groups, "another class order"
    lines = outcome.announcement(made)
    assert "block: seed 3, fold 2, order seed:3" in lines


def test_a_comparison_has_seeds_or_blocks(scenes, tmp_path):
    with pytest.raises(ConfigError, match="seeds: every block has its own seed; leave seeds= or blocks= out"):
        build(scenes, tmp_path, seeds=2, blocks=2)
    with pytest.raises(ConfigError, match=r"fold: there is no fold 3; folds=2 has 1 to 2"):
        build(scenes, tmp_path, blocks=[{"seed": 0, "fold": 1}, {"seed": 1, "fold": 3}], folds=2)
    with pytest.raises(ConfigError, match=r"fold: folds=2 needs the tested fold.*blocks=2"):
        build(scenes, tmp_path, folds=2)


def test_joint_training_gets_the_steps_of_all_tasks(scenes, tmp_path):
    """12 images and batch 4: the tasks take a and b steps in an epoch each, joint training 3."""
    made = build(scenes, tmp_path / "out", "finetune,joint", equal_steps=True, epochs=3)
    each = [-(-len(t.train) // 4) * 3 for t in made.scenario]
    joint = next(c for c in made.cells if c.kind == "joint")
    assert joint.settings.train.joint_epochs == -(-sum(each) // 3) > 3
    prefixes = build(scenes, tmp_path / "b", "finetune", equal_steps=True, split="4+3+3", upper="prefixes").bounds(0)
    few, all_of_them = (c.settings.train.joint_epochs or 0 for c in prefixes)
    assert 0 < few < all_of_them
    plain = build(scenes, tmp_path / "out", "finetune,joint", epochs=3)
    assert next(c for c in plain.cells if c.kind == "joint").settings.train.joint_epochs is None


def test_rows_with_other_steps_are_refused(scenes, tmp_path):
    rows = ["finetune", {"name": "ilyolox", "memory": 5, "memory.batches": "merged"}]
    with pytest.raises(CiodError, match=r"equal_steps: ilyolox adds its memory to every epoch"):
        build(scenes, tmp_path / "a", rows, equal_steps=True)
    rows[1]["memory.batches"] = "share"
    with pytest.raises(CiodError, match=r"equal_steps: ilyolox takes \d+\+\d+ steps but finetune takes"):
        build(scenes, tmp_path / "a", rows, equal_steps=True, epochs=3)
    with pytest.raises(ConfigError, match="joint_epochs: equal_steps=true chooses them"):
        build(scenes, tmp_path / "a", equal_steps=True, joint_epochs=5)
    made = build(scenes, tmp_path / "a")
    one = next(c for c in made.cells if c.kind == "run").settings
    with pytest.raises(CiodError, match=r"equal_steps: b takes 4\+6 steps but a takes 4\+5; give all methods"):
        plan.steps.check({"a": (one, [4, 5]), "b": (one, [4, 6])})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"equal_steps": "maybe"}, "equal_steps: 'maybe' should be true or false"),
        ({"gate": 1.5}, r"gate: 1.5 must be a number from 0 to 1\."),
        ({"margin": -1}, r"margin: -1 must be a number from 0 to 0.5"),
    ],
)
def test_rules_that_cannot_be_read(scenes, tmp_path, given, message):
    with pytest.raises(ConfigError, match=message):
        build(scenes, tmp_path, **given)


def test_parts_are_consecutive_and_together_everything(scenes, tmp_path):
    cells = build(scenes, tmp_path / "out", blocks=3).cells
    for n in (1, 2, 3, 5, 40):
        parts = [schedule.part(cells, k, n) for k in range(1, n + 1)]
        runs = [c.name for p in parts for c in p if c.kind != "first"]
        assert runs == [c.name for c in cells if c.kind != "first"], "each run is in one part"
        for p in parts:
            assert {c.starts_from for c in p if c.starts_from} <= {c.name for c in p}, "with what it starts from"
    assert [{c.seed for c in schedule.part(cells, k, 3)} for k in (1, 2, 3)] == [{0}, {1}, {2}], "one block per part"


@pytest.mark.parametrize("only", ["0/2", "3/2", "1", "a/b", "1/0", 1])
def test_parts_that_are_none(only, scenes, tmp_path):
    with pytest.raises(ConfigError, match=f"only: '{only}' is not a part of the runs; write 1/3, 2/3"):
        ciod.compare(methods="finetune", only=only, out=tmp_path, data=str(scenes))
    assert words.part_of("2/3") == (2, 3) and words.part_of(None) is None

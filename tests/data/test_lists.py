"""Tasks with their own image lists, and tasks that teach classes again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ciod.config import load as config
from ciod.core.errors import ConfigError
from ciod.data.scenarios import lists
from ciod.data.scenarios.scenario import Protocol, Scenario, groups_of, read_protocol
from ciod.evaluation import continual
from ciod.runs import environment
from tests.fixed import index_of

NAMES = ("ant", "bee", "cow")
#        0: ant bee   1: ant   2: bee cow   3: cow   4: nothing   5: ant cow
ROWS = [(0, "ant"), (0, "bee"), (1, "ant"), (2, "bee"), (2, "cow"), (3, "cow"), (5, "ant"), (5, "cow")]


def index():
    return index_of(ROWS, NAMES, 6)


def names(*rows):
    return [index().files[i].name for i in rows]


def written(folder, **content):
    for name, entries in content.items():
        text = entries if isinstance(entries, str) else "\n".join(entries)
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return [str(folder / f"{name}.txt") for name in content]


def scenario(paths, split, **more):
    return Scenario(Protocol(split=split, images=paths, **more), index(), index())


def images(task):
    return [int(f.stem) for f in task.train.files]


def labels(task):
    return [task.train.class_names[y] for y in task.train.labels]


def test_a_task_trains_on_its_list(tmp_path):
    paths = written(tmp_path, a=["# the first task", *names(0, 1, 4), ""], b=names(2, 3, 1))
    made = scenario(paths, [["ant", "bee"], ["cow"]])
    first, second = made
    assert images(first) == [0, 1] and images(second) == [2, 3]  # 4 and 1 show no class of their task
    assert labels(second) == ["cow", "cow"] and second.hidden_boxes == 1  # the bee of 2
    assert made.sizes() == [
        "Listed images that show the classes of their task: 2 of 3, 2 of 3; 1 of 5 images are in several lists."
    ]
    assert "A task trains on the images of its list that show its classes (a.txt, b.txt)." in made.sentences()
    joint = scenario(paths, [["ant", "bee"], ["cow"]], joint=True)
    assert images(joint.task(0)) == [0, 1, 2, 3]


def test_what_a_list_may_hold(tmp_path):
    """File names with and without ending or folders, ids, and JSON."""
    data = replace(index(), image_ids=index().image_ids + 100)
    ids = [data.ids_of(i)[0] for i in range(6)]
    coco = {"images": [{"id": ids[0], "file_name": names(0)[0]}, {"id": ids[3]}]}
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    (tmp_path / "plain.json").write_text(json.dumps([ids[1], names(2)[0]]))
    (text,) = written(tmp_path, text=[data.files[5].stem, str(ids[0]), f"{data.files[4].parent.name}/{names(4)[0]}"])
    found = lists.rows(data, [str(tmp_path / "coco.json"), str(tmp_path / "plain.json"), text])
    assert [list(r) for r in found] == [[0, 3], [1, 2], [0, 4, 5]]


def test_every_problem_of_the_lists_at_once(tmp_path):
    paths = written(tmp_path, a=[*names(0), "x.jpg", "y.jpg", "z.jpg", "w.jpg"], b=names(1, 2, 1), c="\n# nothing\n")
    (tmp_path / "d.json").write_text('{"images": [{"width": 5}]}')
    (tmp_path / "e.json").write_text("{")
    with pytest.raises(ConfigError) as caught:
        lists.rows(index(), [*paths, str(tmp_path / "d.json"), str(tmp_path / "e.json")])
    a, b, c, d, e = caught.value.problems
    assert "a.txt names 4 of 5 images (x.jpg, y.jpg, z.jpg, …) that are not in the data" in a
    assert f"b.txt lists 1 of 3 images ({names(1)[0]}) twice; list each image once." in b
    assert "c.txt lists no image." in c
    assert "d.json is not a list of images; write one file name or image id per line" in d and "e.json" in e


def test_an_entry_that_fits_two_images_is_refused(tmp_path):
    data = replace(index(), files=[Path(f"/d/{f}") for f in ("a/x.png", "b/x.png", "3.png", "y.png", "z.png", "w.png")],
                   image_ids=index().image_ids * 0 + [10, 11, 12, 3, 14, 15])  # fmt: skip
    with pytest.raises(ConfigError, match=r"has 2 of 3 images \(x\.png, 3\) that fit several images of the data"):
        lists.rows(data, written(tmp_path, a=["x.png", "3", "y.png"]))
    assert list(lists.rows(data, written(tmp_path, a=["b/x.png", "3.png"]))[0]) == [1, 2]


def test_a_list_without_a_box_of_its_task(tmp_path):
    paths = written(tmp_path, a=names(0, 1), b=names(1, 4))
    with pytest.raises(
        ConfigError, match=r"none of the 2 images in .*b\.txt \(.*\) has a box of the classes of task 2"
    ):
        scenario(paths, [["ant", "bee"], ["cow"]])


def test_lists_are_checked_before_data_is_read(tmp_path):
    (path,) = written(tmp_path, a=names(0))
    with pytest.raises(ConfigError) as caught:
        config.load(None, {"data": "shapes", "split": "4+3+3", "images": [path, str(tmp_path / "b.txt")]})
    first, second = caught.value.problems
    assert first == "images: 2 lists for 3 tasks; name one file per task."
    assert second.startswith(f"images: there is no file {tmp_path / 'b.txt'}")
    with pytest.raises(ConfigError, match=r"images: 'loko' is not allowed"):
        config.load(None, ["data=shapes", "split=5+5", "images=loko"])


def test_paths_are_relative_to_the_scenario_and_their_content_counts(tmp_path):
    written(tmp_path, a=names(0), b=names(3))
    (tmp_path / "mine.yaml").write_text("data: shapes\nsplit: 5+5\nimages: [a.txt, b.txt]\n")
    assert read_protocol(str(tmp_path / "mine.yaml")).lists == [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]
    prints = []
    for text in (names(0), names(0), names(1)):
        written(tmp_path, a=text)
        prints.append(environment.fingerprint(config.load(None, [f"scenario={tmp_path / 'mine.yaml'}"])))
    assert prints[0] == prints[1] != prints[2]
    assert "a.txt (" in environment.differences(prints[2], prints[0])


# Classes that come again ----------------------------------------------------------------------------------------------


def test_a_class_can_come_again_on_other_images(tmp_path):
    paths = written(tmp_path, a=names(0, 1, 3), b=names(2, 5))
    first, second = made = scenario(paths, [["ant", "bee"], ["bee", "cow"]])
    assert made.classes == ("ant", "bee", "cow") and made.groups == [("ant", "bee"), ("cow",)] and made.repeats
    assert first.new_classes == ("ant", "bee") and first.repeated_classes == ()
    assert second.new_classes == ("cow",) and second.old_classes == ("ant", "bee")
    assert second.repeated_classes == ("bee",) and second.taught_classes == ("bee", "cow")
    assert labels(second) == ["bee", "cow", "cow"] and second.hidden_boxes == 1  # the ant of 5
    assert (first.hidden_boxes, first.future_boxes) == (0, 0)
    domains = list(scenario(paths, [["ant", "bee", "cow"]] * 2))
    assert domains[1].new_classes == () and domains[1].repeated_classes == ("ant", "bee", "cow")
    assert images(domains[1]) == [2, 5] and domains[1].hidden_boxes == 0
    joint = scenario(paths, [["ant", "bee"], ["bee", "cow"]], joint=True)
    assert joint.classes == ("ant", "bee", "cow") and len(joint) == 1 and not joint.repeats


def test_instances_can_be_divided_at_random():
    many = index_of([(i, n) for i in range(90) for n in ("ant", "bee")], NAMES, 90)
    tasks = list(Scenario(Protocol(split=[["ant", "bee"]] * 3, images="disjoint"), many, many))
    assert [len(t.train) for t in tasks] == [30, 30, 30]
    assert not {*tasks[0].train.files} & {*tasks[1].train.files}
    assert [len(t.train.labels) for t in tasks] == [60, 60, 60]


def test_repeated_classes_need_other_images():
    with pytest.raises(ConfigError, match=r"ant is in two tasks; .*images=disjoint, or a list of images per task"):
        groups_of(Protocol(split=[["ant"], ["ant", "bee"]]), NAMES)
    with pytest.raises(ConfigError, match="ant is twice in one task; list each class once"):
        groups_of(Protocol(split=[["ant", "ant"], ["bee"]], images="disjoint"), NAMES)


def test_what_cannot_teach_a_class_again_is_refused(tmp_path):
    from ciod.runs.start import check_repeats

    paths = written(tmp_path, a=names(0, 1), b=names(2, 5))
    made = scenario(paths, [["ant", "bee"], ["bee", "cow"]])
    words = ["data=shapes", "method=freeze", "memory=4", "memory.select=herding", "detector=yolox-pico"]
    with pytest.raises(ConfigError) as caught:
        check_repeats(config.load(None, words), made)
    first, second = caught.value.problems
    assert first == ("method: task 2 teaches bee again, but freeze with train=new_rows keeps their rows as they are; "
                     "write method.train=head.")  # fmt: skip
    assert second.startswith("memory.select: task 2 teaches bee again, but herding ranks the images of a class once")
    check_repeats(config.load(None, [*words[:2], "method.train=head", "detector=yolox-pico"]), made)
    check_repeats(config.load(None, words), scenario(paths, [["ant", "bee"], ["cow"]]))


def test_the_loss_covers_the_classes_that_come_again(tmp_path):
    """``taught`` masks the class channels of the old classes, except those that the task teaches again."""
    from ciod import detectors, methods
    from tests.fixed import batch, no_boxes

    first, second = scenario(written(tmp_path, a=names(0, 1), b=names(2, 5)), [["ant", "bee"], ["bee", "cow"]])
    method = methods.make({"name": "finetune"})
    detector = detectors.build(second.seen_classes, name="yolox-pico", size=64)
    method.attach(detector, detector, None)
    method.begin_task(second)
    assert method.taught(batch(no_boxes()), 3).tolist() == [[False, True, True]]
    method.begin_task(first)
    assert method.taught(batch(no_boxes()), 3).all()


def test_a_series_of_domains(tmp_path):
    """Train, report and bounds of two tasks with the same classes."""
    from ciod.data import formats
    from ciod.data.shapes.scenes import write_shapes
    from ciod.report.summary import changes, verdict
    from ciod.runs import run as engine
    from ciod.training.progress import Reporter

    data = write_shapes(tmp_path / "shapes", train=12, val=4, size=64)
    every = formats.read(data, "train")
    half = [f.name for f in every.files]
    paths = written(tmp_path, a=half[:6], b=half[6:])
    settings = {"data": str(data), "split": [[*every.class_names], [*every.class_names[:4]]], "images": paths,
                "detector": "yolox-pico", "size": 64, "epochs": 1, "batch": 4, "device": "cpu",
                "method": "pseudo_label", "out": str(tmp_path / "run")}  # fmt: skip
    out = engine.train(config.load(None, settings), reporter=Reporter(quiet=True))
    results = json.loads((out / "results.json").read_text())
    second = results["tasks"][1]
    assert second["new_classes"] == [] and second["repeated_classes"] == list(every.class_names[:4])
    assert results["scenario"]["split"] == [len(every.class_names), 0] and results["scenario"]["images"] == paths
    known = [v for n in every.class_names[4:] if (v := results["ap"]["AP"][1][n]) is not None]
    assert second["old"]["AP"] == pytest.approx(sum(known) / len(known))
    assert {c.name for c in changes(results)} == set(every.class_names[4:])
    assert "further task with the same classes" in verdict(results) and (out / "report.html").is_file()


def test_a_comparison_of_repeated_classes_has_one_bound(tmp_path):
    from ciod.comparison import plan
    from ciod.data import formats
    from ciod.data.shapes.scenes import write_shapes

    data = write_shapes(tmp_path / "shapes", train=12, val=4, size=64)
    every = formats.read(data, "train")
    files = [f.name for f in every.files]
    paths = written(tmp_path, a=files[:4], b=files[4:8], c=files[8:])
    settings = {"data": str(data), "split": [[*every.class_names]] * 3, "images": paths, "detector": "yolox-pico",
                "size": 64, "epochs": 1, "device": "cpu"}  # fmt: skip
    made = plan.build(methods="finetune", out=tmp_path / "c", settings=settings)
    assert made.upper == "final" and [c.tasks for c in made.cells if c.kind == "joint"] == [3]
    with pytest.raises(ConfigError, match=r"upper: prefixes differ in their classes, which repeat here"):
        plan.build(methods="finetune", out=tmp_path / "c", settings=settings, upper="prefixes")
    settings["split"] = [[*every.class_names[:3]], [*every.class_names[3:6]], [*every.class_names[6:]]]
    joint = [
        c for c in plan.build(methods="finetune", out=tmp_path / "d", settings=settings).cells if c.kind == "joint"
    ]
    assert [len(c.settings.protocol.lists) for c in joint] == [2, 3]  # each with the lists of its tasks


def test_metrics_of_repeated_classes():
    """ant is taught in task 1, bee in tasks 1 and 2, cow in 2 and 3: old at the end are ant and bee."""
    table = [{"ant": 0.8, "bee": 0.2}, {"ant": 0.6, "bee": 0.5, "cow": 0.4}, {"ant": 0.4, "bee": 0.3, "cow": 0.9}]
    tasks = [["ant", "bee"], ["bee", "cow"], ["cow"]]
    found = continual.summary(table, tasks)
    assert found["retention"] == pytest.approx((0.4 + 0.3) / (0.8 + 0.5))  # bee was learnt in task 2
    assert found["forgetting"] == pytest.approx(((0.8 - 0.4) + (0.5 - 0.3)) / 2)
    assert found["harmonic_mean"] == pytest.approx(2 * 0.35 * 0.9 / (0.35 + 0.9))
    domains = continual.summary([{"ant": 0.8}, {"ant": 0.6}], [["ant"], ["ant"]], [None, 0.9])
    assert domains["retention"] is None and domains["forgetting"] is None  # no class is old
    assert domains["omega"] == pytest.approx((1 + 0.6 / 0.9) / 2)

"""Seeds become one row: mean and standard deviation by hand, and every way to write the table."""

from __future__ import annotations

import csv
import io
import statistics
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ciod.report import compared
from ciod.report.compared import COLUMNS, PAGE, REST, SCORES, comparison_rows
from ciod.report.comparison import About, write_comparison

from . import fake
from .test_page import Page


def run(seed: int, all_ap: float | None, **given: Any) -> dict[str, Any]:
    found = fake.results((4, 2), seed=seed, **given)
    found["tasks"][-1]["all"]["AP"] = all_ap
    return found | {"seed": seed}


def test_mean_and_deviation_over_seeds() -> None:
    runs = [("a", run(0, 0.30)), ("b", run(0, 0.2)), ("a", run(1, 0.40)), ("a", run(2, 0.38))]
    a, b = comparison_rows(runs)
    assert (a["name"], a["seeds"], b["name"], b["seeds"]) == ("a", 3, "b", 1)
    assert a["all_ap"] == pytest.approx(0.36) and a["std"]["all_ap"] == pytest.approx(
        statistics.stdev([0.30, 0.40, 0.38])
    )
    assert b["std"]["all_ap"] is None
    assert compared.comparison_cells(a, {"all_ap": "all AP"}) == ["a", "36.0 ± 5.3"]


def test_unknown_values_are_left_out_of_mean_and_deviation() -> None:
    row = comparison_rows([("a", run(0, None)), ("a", run(1, 0.4))])[0]
    assert row["all_ap"] == pytest.approx(0.4) and row["std"]["all_ap"] is None
    assert comparison_rows([("a", run(0, None))])[0]["all_ap"] is None
    assert compared.deviation([0.1, float("nan"), 0.3]) == pytest.approx(statistics.stdev([0.1, 0.3]))


def test_each_seed_is_measured_against_the_joint_run_of_its_seed() -> None:
    runs: list[tuple[str, dict[str, Any]]] = [("a", run(0, 0.3)), ("a", run(1, 0.3))]
    for _, found in runs:
        found["continual"] = {}
    for seed, bound in ((0, 0.4), (1, 0.6)):
        joint = fake.results((4, 2), joint=True, seed=seed) | {"seed": seed}
        joint["tasks"][0]["all"]["AP"] = bound
        runs.append(("joint", joint))
    row = comparison_rows(runs)[0]
    assert row["rel_gap"] == pytest.approx((0.25 + 0.5) / 2)
    assert comparison_rows(runs)[1]["joint"] and comparison_rows(runs)[1]["rel_gap"] is None


def timed(name: str, seed: int, seconds: float, steps: int = 10, **settings: Any) -> dict[str, Any]:
    found = run(seed, 0.3, method=name)
    found["method"]["settings"] = settings
    found["tasks"][0] |= {"seconds": 1000.0, "steps": 1}  # shared by all methods
    found["tasks"][1] |= {"seconds": seconds, "steps": steps}
    return found


def test_a_step_is_measured_relative_to_fine_tuning_with_the_same_seed() -> None:
    runs = [
        ("masked", timed("finetune", 0, 9.0, mask="new")),
        ("finetune", timed("finetune", 0, 2.0)),
        ("erd", timed("erd", 0, 5.0)),
        ("erd", timed("erd", 1, 14.0, steps=20)),
        ("finetune", timed("finetune", 1, 1.0)),
        ("joint", fake.results((4, 2), joint=True)),
    ]
    rows = {r["name"]: r for r in comparison_rows(runs)}
    assert rows["erd"]["step_ratio"] == pytest.approx((2.5 + 7) / 2)
    assert rows["masked"]["step_ratio"] == pytest.approx(4.5) and rows["finetune"]["step_ratio"] == 1
    assert rows["joint"]["step_ratio"] is None
    assert comparison_rows(runs[2:4])[0]["step_ratio"] is None  # no fine-tuning to compare with
    assert comparison_rows([runs[0], runs[2]])[1]["step_ratio"] == pytest.approx(5 / 9)
    assert compared.cell("step_ratio", 4.75, 3.0) == "4.75 ×"
    assert "4.75 $\\times$" in compared.comparison_latex(runs, PAGE)
    first_task_only = fake.results((4, 2), tasks=1)
    assert comparison_rows([runs[1], ("new", first_task_only)])[1]["step_ratio"] is None


def test_csv_has_one_line_per_seed() -> None:
    runs = [("a, b", run(0, 0.3)), ("a, b", run(1, 0.5))]
    lines = list(csv.DictReader(io.StringIO(compared.comparison_csv(runs))))
    assert [(x["method"], x["seed"], float(x["all_ap"])) for x in lines] == [("a, b", "0", 0.3), ("a, b", "1", 0.5)]
    assert set(COLUMNS) < set(lines[0])


def test_latex_escapes_and_separates_the_upper_bound() -> None:
    runs = [("a_b & 50%", run(0, 0.3)), ("joint", fake.results((4, 2), joint=True))]
    text = compared.comparison_latex(runs)
    assert "a\\_b \\& 50\\% &" in text and "$\\Omega$" in text
    assert text.count("\\midrule") == 2 and text.index("joint") > text.rindex("\\midrule")
    columns = len(PAGE) - len(compared.MACHINE)
    assert all(line.count(" & ") == columns for line in text.splitlines() if line.endswith("\\\\"))
    assert "peak memory" not in text and "time" not in text, "another machine would change them"


def test_latex_has_a_caption_with_the_protocol() -> None:
    runs = [("a", run(0, 0.3)), ("a", run(1, 0.5))]
    text = compared.comparison_latex(runs, protocol=["50% of the boxes."])
    assert "\\caption{AP and AP50 in \\%, after the last task; mean $\\pm$ standard deviation over the seeds." in text
    assert "50\\% of the boxes.}" in text and text.rstrip().endswith("\\end{table}")
    assert "mean" not in compared.comparison_latex(runs[:1])


def test_the_tables_of_seeds_fit_a_terminal() -> None:
    runs = [(n, run(s, 0.3 + s / 10)) for n in ("finetune", "ilyolox (nms_iou=0.65)") for s in (0, 1)]
    console = Console(width=80, record=True)
    for columns in (SCORES, REST):
        console.print(compared.comparison_table(runs, columns))
    text = console.export_text()
    assert "…" not in text and "35.0 ±7.1" in text and "Ω" in text


def test_page_of_seeds(tmp_path: Path) -> None:
    folders: dict[str, list[Path]] = {}
    for name, keep in (("finetune", 0.1), ("ilyolox", 0.9)):
        for seed in (0, 1, 2):
            found = fake.results((4, 2, 2), keep=keep, seed=seed, warnings=("12 boxes left out",)) | {"seed": seed}
            found["upper_bounds"] = [None, {"AP": 0.5, "AP50": 0.8}, {"AP": 0.4, "AP50": 0.7}]
            folder = fake.write_run(tmp_path / f"{name}{seed}", found)
            (folder / "report.html").write_text("there")
            folders.setdefault(name, []).append(folder)
    about = About(command="ciod compare x", failures=[("ilyolox-seed3", "no <room>")], methods={"ilyolox": {"a": 1}})
    page = Page(write_comparison(folders, tmp_path / "compare.html", about))
    message = (
        "mean ± standard deviation",
        "3 seeds",
        "ilyolox-seed3",
        "no <room>",
        "joint (upper bound)",
        "Diamonds",
        "a=1",
    )
    for part in message:
        assert part in page.text, part
    assert page.text.count("12 boxes left out") == 1, "each warning once"
    assert [x for x in page.links if "report" in x] == [f"{n}{s}/report.html" for n in folders for s in range(3)]
    assert "class 7" in page.text and "The literature" not in page.text


def test_page_with_the_literature(tmp_path: Path) -> None:
    names = ["toothbrush", "hair drier", "frisbee", "zebra", *(f"c{i}" for i in range(76))]
    folder = fake.write_run(tmp_path / "run", fake.results((40, 40), names=names))
    page = Page(write_comparison({"ours": folder}, tmp_path / "compare.html"))
    ours, literature = page.text.split("The literature on this scenario")
    assert "RILOD" in literature and "RILOD" not in ours, "never in one table"
    assert "not a ranking" in literature and "Deformable DETR" in literature and "vision-language" in literature


def test_rows_that_saw_more_images_say_so(tmp_path: Path) -> None:
    plain, more = run(0, 0.3), run(0, 0.4)
    more["tasks"][-1]["memory_images"] = 50
    folders = {n: fake.write_run(tmp_path / n, r) for n, r in (("plain", plain), ("more", more))}
    page = Page(write_comparison(folders, tmp_path / "c.html"))
    assert page.text.count("also saw 50 images of earlier tasks") == 1
    assert "After each task" in page.text and "Diamonds" not in page.text, "no upper bounds, none explained"


def test_everything_failed(tmp_path: Path) -> None:
    page = Page(write_comparison({}, tmp_path / "c.html", About(failures=[("a-seed0", "no room")])))
    assert "One run failed" in page.text

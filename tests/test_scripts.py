"""Scripts: one JSON object per command, quiet commands, names that are never cut, completion in a shell."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest
from typer.main import get_command

from ciod.cli import answers, app
from ciod.cli.command import command
from ciod.core import terminal
from ciod.data.shapes.scenes import write_shapes
from tests.test_cli import model, pets, run  # noqa: F401  (fixtures)

ROOT = Path(__file__).resolve().parents[1]
SHAPE = ["method=finetune", "detector=yolox-pico", "size=64", "epochs=1", "batch=4", "device=cpu"]


def answer(out: str, shape: type | None) -> dict:
    """The one object of standard output, which has the keys of its documentation and values of their types."""
    found = json.loads(out)
    hints = {"command": str, "exit_code": int, **({} if shape is None else get_type_hints(shape))}
    assert set(found) <= set(hints) if shape is answers.List else set(found) == set(hints)
    for key, value in found.items():
        kinds = getattr(hints[key], "__args__", ()) if type(None) in getattr(hints[key], "__args__", ()) else ()
        allowed = tuple(getattr(k, "__origin__", k) for k in (kinds or (hints[key],)))
        assert isinstance(value, allowed), (key, value)
    return found


def test_eval_check_list_and_predict(run, model, pets, tmp_path):  # noqa: F811
    code, out, err = run("eval", str(model), f"data={pets}", "device=cpu", f"out={tmp_path / 'scored'}", "--json")
    found = answer(out, answers.Eval)
    assert code == found["exit_code"] == 0 and found["images"] == 4
    assert found["not_in_data"] == ["owl"] and set(found["per_class"]) == {"cat", "dog"}
    assert "4 images, 2 classes" in err, "what people read is on standard error"
    page = Path(found["report"]).read_text(encoding="utf-8")
    assert "Confusion matrix" in page and "Precision and recall" in page
    assert {p.name for p in (tmp_path / "scored").iterdir()} >= {"eval.json", "confusion.svg", "precision-recall.pdf"}

    _, out, _ = run("list", str(model), "--json")
    found = answer(out, answers.List)
    assert found["kind"] == "ciod" and found["classes"] == ["cat", "dog", "owl"] and found["lineage"][0]["images"] == 7
    _, out, _ = run("list", "data", str(pets), "--json")
    found = answer(out, answers.List)
    assert found["format"] == "coco" and found["splits"]["val"]["images"] == 4 and len(found["rows"]) == 3
    for topic in ("scenarios", "environment"):
        answer(run("list", topic, "--json")[1], answers.List)

    picture = next((pets / "images").iterdir())
    words = [str(picture), f"out={tmp_path / 'found'}", "draw=false", "score=0", "device=cpu", "--json"]
    found = answer(run("predict", str(model), *words)[1], answers.Predict)
    assert found["files"] == 1 and found["images"][0]["image"] == str(picture) and found["images"][0]["detections"]


def test_train_report_and_a_plan(run, tmp_path):  # noqa: F811
    data = write_shapes(tmp_path / "data", train=8, val=4, size=64)
    words = [f"data={data}", "split=5+5", *SHAPE, f"out={tmp_path / 'run'}"]
    plan = answer(run("train", *words, "--dry-run", "--json")[1], answers.TrainPlan)
    assert [t["images"] for t in plan["tasks"]] and plan["missing"] == []
    code, out, err = run("train", *words, "--json")
    found = answer(out, answers.Train)
    assert code == 0 and len(found["models"]) == 2 and len(found["results"]["tasks"]) == 2
    assert "task 2/2" in err
    assert answer(run("report", found["out"], "--json")[1], answers.Train)["verdict"] == found["verdict"]


def test_a_plan_of_a_comparison(run, tmp_path):  # noqa: F811
    words = ["data=shapes", "split=5+5", *SHAPE[1:], "methods=finetune", f"out={tmp_path / 'c'}", "--dry-run"]
    found = answer(run("compare", *words, "--json")[1], answers.ComparePlan)
    assert found["runs"] and {"name", "folder", "state"} == set(found["runs"][0])


def test_a_failed_command_says_so_in_json(run, model):  # noqa: F811
    code, out, err = run("eval", str(model), "data=/no/such/folder", "sise=3", "--json")
    found = answer(out, answers.Failed)
    assert code == found["exit_code"] == 2 and len(found["problems"]) == 2
    assert found["error"] in err


def test_quiet_prints_warnings_alone(run, tmp_path):  # noqa: F811
    data = write_shapes(tmp_path / "data", train=8, val=4, size=64)
    code, out, err = run("train", f"data={data}", "split=10", *SHAPE, f"out={tmp_path / 'run'}", "--quiet")
    assert code == 0 and out == ""
    assert all(line.startswith("warning") for line in err.splitlines())


def test_warnings_of_a_quiet_command_are_on_standard_error(capsys):
    @command("talks", heavy=False)
    def talks() -> None:
        print("one\nwarning: two\nthree")

    talks(wants_quiet=True)
    assert capsys.readouterr() == ("", "warning: two\n")


def test_output_of_processes_does_not_reach_standard_output(tmp_path):
    """As a process of its own, whose standard output is a pipe: what a child process prints is on standard error."""
    code = "\n".join(
        [
            "import os",
            "from ciod.cli.command import command",
            "@command('child', heavy=False)",
            "def child():",
            "    os.system('echo from a child')",
            "    print('from here')",
            "    return {'done': True}",
            "child(wants_json=True)",
        ]
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert json.loads(done.stdout) == {"command": "child", "exit_code": 0, "done": True}
    assert "from a child" in done.stderr and "from here" in done.stderr


def test_plain_lists_have_whole_names(run):  # noqa: F811
    code, out, _ = run("list", "settings", "--plain")
    rows = [line.split("\t") for line in out.splitlines()]
    assert code == 0 and all(len(row) == 3 for row in rows) and "train.joint_epochs" in [row[0] for row in rows]


def test_no_line_is_cut_in_a_pipe(monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    terminal.console().print("x" * 3000)
    assert capsys.readouterr().out == "x" * 3000 + "\n"


COMPLETED = [
    ("bash", "ciod train epo", "epochs="),
    ("zsh", "ciod train method=ily", "method=ilyolox"),
    ("zsh", "ciod compare methods=ewc,ily", "methods=ewc,ilyolox"),
    ("bash", "ciod train method = ily", "ilyolox"),  # as bash splits method=ily
    ("bash", "ciod list scen", "scenarios"),
    ("bash", "ciod list methods er", "erd"),
    ("bash", "ciod eval model.pth score_", "score_threshold="),
    ("bash", "ciod ext", "extend"),
]


@pytest.mark.parametrize(("shell", "typed", "completed"), COMPLETED, ids=[t for _, t, _ in COMPLETED])
def test_a_shell_completes_commands_and_settings(shell, typed, completed, monkeypatch):
    """From a list of words, as PyTorch would take seconds."""
    words = typed.split()
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", typed)
    monkeypatch.setenv("_CIOD_COMPLETE", f"complete_{shell}")
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit):
        get_command(app)(prog_name="ciod")
    assert completed in out.getvalue().replace('"', " ").split()


def test_the_page_has_the_keys_of_every_command():
    spec = importlib.util.spec_from_file_location("json_page", ROOT / "scripts" / "json_page.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.PAGE.read_text(encoding="utf-8") == script.page(), "run python scripts/json_page.py"

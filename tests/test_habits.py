"""What runs before a commit is what CI runs, and an issue asks for what is needed to answer it."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]


def recipe(target: str) -> list[str]:
    """The commands of a target of the Makefile, without the options that only choose files."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    match = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", text, re.M)
    assert match is not None, f"the Makefile has no target {target}"
    return [line.strip().replace("$(BIN)", ".venv/bin").removesuffix(" .") for line in match[1].splitlines()]


def test_a_commit_runs_the_checks_of_style_and_types_that_ci_runs():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook["entry"].replace(" --force-exclude", "") for repo in config["repos"] for hook in repo["hooks"]]
    assert [h for h in hooks if "pytest" not in h] == recipe("lint")
    (structure,) = [h for h in hooks if "pytest" in h]
    files = [word for word in structure.split() if word.startswith("tests/")]
    assert {"tests/test_layers.py", "tests/test_sizes.py", "tests/test_english.py"} <= set(files)
    assert [f for f in files if not (ROOT / f).is_file()] == []


def test_ci_checks_style_types_docs_tests_and_the_wheel():
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("make ")] == ["make lint", "make docs", "make test", "make wheel"]
    assert "set -euo pipefail" in lines
    assert any("--strict" in line for line in recipe("docs"))
    assert any("scripts/check_wheel.py" in line for line in recipe("wheel"))
    assert any("--cov" in line for line in recipe("coverage"))


def test_an_issue_asks_for_the_output_of_ciod_list():
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text(encoding="utf-8"))
    labels = [field["attributes"]["label"] for field in form["body"]]
    assert "Output of `ciod list environment`" in labels and any("`ciod list data" in label for label in labels)


def test_the_readme_has_the_installation_of_the_wheel_beside_the_two_commands():
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Two commands")[2].partition("\n## ")[0]
    assert "make demo" in section and "make test" in section and "pip install dist/ciod-*.whl" in section


def test_the_changelog_says_what_was_added_changed_and_fixed_in_a_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## \d+\.\d+\.\d+", text, re.M)
    assert set(re.findall(r"^### (.+)$", text, re.M)) <= {"Added", "Changed", "Fixed", "Removed"}


def test_how_to_cite_and_how_to_behave_are_written_down():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["title"] and cited["authors"] and cited["license"] == "Apache-2.0"
    assert "conduct" in (ROOT / "CODE_OF_CONDUCT.md").read_text(encoding="utf-8").lower()

"""``ciod push MODEL user/model``: a model on the Hugging Face Hub, with a card: classes, lineage, numbers, licence."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ciod import detectors
from ciod.core.errors import CiodError
from ciod.core.files import exists, is_file
from ciod.core.plural import few
from ciod.core.version import __version__
from ciod.detectors.files import hub, weights
from ciod.report.page import read_results
from ciod.report.summary import Results, changes, done, percent, score, verdict

if TYPE_CHECKING:
    from ciod.detectors.base import Detector

MOST = 20  # old classes in the table, the greatest loss first


def push(
    model: str | Path,
    repo: str,
    *,
    license: str | None = None,
    private: bool = False,
    results: str | Path | None = None,
) -> str:
    """Uploads a model with its card, and returns its address. ``ciod.load("hf:" + repo)`` reads it.

    Args:
        model: a model of ciod, or an ONNX file that ciod extended.
        repo: ``user/model``; it is made if it is not there.
        license: of the weights, those that the model started from included, as the Hub names licences: ``apache-2.0``.
            None: the card says that it was not stated.
        private: only its owner sees a repository that is made.
        results: the run folder with its numbers. None: the one that the model lies in.

    Raises:
        CiodError: not a model of ciod, huggingface_hub is not installed, or the server refuses.
    """
    path = Path(model)
    if path.suffix.lower() not in (".safetensors", ".onnx"):
        raise CiodError(f"push takes a model of ciod or an ONNX file that it extended, not {path}; train or extend it.")
    if path.suffix.lower() == ".safetensors" and is_file(path):
        name = str(weights.read_metadata(path)["detector"]["name"])
        if detectors.is_own(name):
            raise CiodError(
                f"push: {path} works only with the file of {name}, which ciod does not upload. Give both files to the "
                "users of the model yourself."
            )
    detector = weights.load(path)
    package, endpoint = hub.package(), os.environ.get("HF_ENDPOINT")
    found = read_results(_run_of(path) if results is None else results)
    api = package.HfApi(endpoint=endpoint)
    name = f"model{path.suffix.lower()}"
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        shutil.copy(path, folder / name)
        content = {"class_names": list(detector.class_names), "detector": detector.settings, "ciod": __version__}
        (folder / "config.json").write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
        (folder / "README.md").write_text(card(detector, repo, found, license), encoding="utf-8")
        try:
            if not api.repo_exists(repo):
                api.create_repo(repo, private=private)
            api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload a model of ciod")
        except package.errors.HFValidationError as e:
            raise CiodError(f"push: {repo} is not the name of a repository; write user/model.") from e
        except Exception as e:
            if not hub.of_the_way(e):
                raise
            raise CiodError(f"push: {repo} cannot be written: {str(e).splitlines()[0]} (is HF_TOKEN set?)") from e
    return f"{endpoint or 'https://huggingface.co'}/{repo}"


def _run_of(model: Path) -> Path:
    """The run folder of a model: the one it lies in, or of a task the one above."""
    return model.parent if exists(model.parent / "results.json") else model.parent.parent


def card(detector: Detector, repo: str, results: Results, license: str | None) -> str:
    """The text of README.md: metadata for the Hub, classes, lineage, numbers before and after, licence."""
    name = repo.rpartition("/")[2]
    start = next((str(step["from"]) for step in detector.lineage if step.get("from")), None)
    terms = f"of the weights: {license}" if license else "of the weights was not stated by who uploaded them"
    lines = [
        _metadata(name, results, license),
        f"# {name}",
        f"An object detector ({detector.settings.get('name', 'ONNX')}) of {len(detector.class_names)} classes, trained "
        f"with [ciod](https://pypi.org/project/ciod/) {__version__}: class-incremental object detection.",
        f'```python\nimport ciod\n\nmodel = ciod.load("hf:{repo}")\nprint(model.predict("photo.jpg").to_list())\n```',
        "## Classes",
        ", ".join(detector.class_names),
        "## How it learnt them",
        "\n".join(f"{i}. {_step(step)}" for i, step in enumerate(detector.lineage, 1)) or "Not recorded.",
        *(["## Results", verdict(results), _tasks(results), _before_after(results)] if done(results) else []),
        "## Licence",
        f"The licence {terms}" + (f"; they started from {start}." if start else "."),
    ]
    return "\n\n".join(line for line in lines if line) + "\n"


def _metadata(name: str, results: Results, license: str | None) -> str:
    """The YAML at the top, with the model's results as the Hub's model-index has them."""
    package = hub.package()
    scenario = results.get("scenario") or {}
    found = [
        package.EvalResult(
            task_type="object-detection",
            dataset_type="custom",
            dataset_name=Path(str(scenario.get("data") or scenario.get("name") or "data")).name,
            metric_type=f"{group}_{metric}",
            metric_name=f"{metric}, {group} classes",
            metric_value=round(value, 5),
        )
        for group in ("all", "old", "new")
        for metric in ("AP", "AP50")
        if (value := score(results, -1, group, metric)) is not None
    ]
    data = package.ModelCardData(
        license=license,
        library_name="ciod",
        pipeline_tag="object-detection",
        tags=["object-detection", "class-incremental", "ciod"],
        model_name=name,
        eval_results=found or None,
    )
    return f"---\n{data.to_yaml()}\n---"


def _step(step: Mapping[str, Any]) -> str:
    """One step of the lineage."""
    classes = few(step.get("classes") or []) or "no new class"  # all of them are listed above
    further = f"; further: {', '.join(step['taught'])}" if step.get("taught") else ""
    dropped = f"; dropped: {', '.join(step['dropped'])}" if step.get("dropped") else ""
    source = Path(str(step.get("data") or step.get("from") or "an unknown place")).name
    method = str((step.get("method") or {}).get("name", ""))
    counts = [f"{step[k]} {k}" for k in ("images", "boxes") if k in step]
    return ", ".join([f"{classes}{further}{dropped} (from {source}", *counts, *([method] if method else [])]) + ")"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    ruler = " | ".join(["---", *["--:"] * (len(head) - 1)])
    return "\n".join(f"| {line} |" for line in (" | ".join(head), ruler, *(" | ".join(r) for r in rows)))


def _tasks(results: Results) -> str:
    """AP and AP50 in % after each task."""
    groups = [(g, m) for g in ("old", "new", "all") for m in ("AP", "AP50")]
    rows = [[str(i + 1), *(percent(score(results, i, g, m)) for g, m in groups)] for i in range(len(done(results)))]
    return _table(["after task", *(f"{g} {m} (%)" for g, m in groups)], rows)


def _before_after(results: Results) -> str:
    """AP50 of the old classes when they were learnt and now; "" where it is not known."""
    known = [c for c in changes(results, "AP50") if c.loss is not None]
    if not known:
        return ""
    rows = [[c.name.replace("|", "\\|"), percent(c.before), percent(c.after)] for c in known[:MOST]]
    more = f"\n\n{len(known) - MOST} more classes lost less." if len(known) > MOST else ""
    return _table(["old class", "AP50 before (%)", "AP50 after (%)"], rows) + more

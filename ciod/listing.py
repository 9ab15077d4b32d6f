"""ciod list TOPIC · data PATH · SCENARIO · model.safetensors"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ciod.core.errors import CiodError, did_you_mean
from ciod.core.files import is_file, is_model, no_model_file

TOPICS = ("detectors", "methods", "scenarios", "recipes", "settings", "environment", "data")


def show(what: str, words: list[str], settings: dict[str, Any]) -> None:
    """Prints one topic; see the module.

    Raises:
        CiodError: there is no such topic.
    """
    console = Console(highlight=False)
    if settings and what in TOPICS:
        raise CiodError(f"list {what} takes no settings ({', '.join(settings)}=).")
    if not what:
        console.print(
            "ciod list " + " | ".join((*TOPICS[:-1], "data PATH", "SCENARIO", "model.safetensors")), markup=False
        )
    elif what == "detectors":
        console.print(_detectors())
    elif what == "methods":
        console.print(_method(words[0]) if words else _methods())
    elif what == "scenarios":
        console.print(_scenarios())
    elif what == "recipes":
        console.print(_recipes())
    elif what == "settings":
        console.print(_settings())
    elif what == "environment":
        console.print(environment(), markup=False, soft_wrap=True)
    elif what == "data":
        from ciod.data.describe import describe

        if not words:
            raise CiodError("list data: name a folder: ciod list data PATH")
        console.print(describe(words[0]))
    elif what.startswith("hf:"):
        _hf(console, what)
    elif what.endswith(".safetensors"):
        _model(console, Path(what))
    elif what.endswith(".onnx"):
        _onnx(console, Path(what))
    else:
        _scenario(console, what, settings)


def _plain(text: str | None) -> str:
    """First paragraph of a docstring on one line."""
    return " ".join((text or "").split("\n\n")[0].split())


def _table(*columns: str) -> Table:
    return Table(*columns, box=box.SIMPLE_HEAD)


def _detectors() -> Table:
    from ciod import detectors

    table = _table("detector", "offers", "parameters (80 classes)")
    import torch

    for name in detectors.available():
        offers = ", ".join(sorted(detectors.traits(name)))
        if extra := detectors.lacking(name):
            table.add_row(name, offers, Text(f"pip install 'ciod[{extra}]'"))
            continue
        with torch.device("meta"):
            n = sum(p.numel() for p in detectors.build([str(i) for i in range(80)], name=name).parameters())
        table.add_row(name, offers, f"{n / 1e6:.1f} M")
    table.add_row("mmdet:CONFIG", "a dense detector of MMDetection: docs/mmdetection.md", "")
    table.add_row("hf:FOLDER", "a query detector of transformers: docs/query-detectors.md", "")
    return table


def detectors_markdown() -> str:
    """The table of docs/detectors.md: for one image at the default input size, with 80 classes."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from ciod import detectors

    columns = ("detector", "offers", "input", "parameters (M)", "GFLOPs", "positions")
    lines = [f"| {' | '.join(columns)} |", "| --- | --- | --: | --: | --: | --: |"]
    for name in detectors.available():
        with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
            detector = detectors.build([str(i) for i in range(80)], name=name).eval()
            size = detector.input.size
            positions = detector(torch.zeros(1, 3, size, size)).answer().logits.shape[1]
        millions = sum(p.numel() for p in detector.parameters()) / 1e6
        flops = counter.get_total_flops() / 2e9  # it counts a multiply-add as two
        offers = ", ".join(sorted(detector.traits))
        lines.append(f"| `{name}` | {offers} | {size} | {millions:.2f} | {flops:.2f} | {positions} |")
    return "\n".join(lines)


def fits() -> dict[str, dict[str, bool]]:
    """Method → detector family (the start of the names) → whether they are compatible."""
    from ciod import detectors, methods

    offered = {name.split("-")[0]: detectors.traits(name) for name in detectors.available()}
    return {
        method: {family: methods.find(method).needs <= traits for family, traits in offered.items()}
        for method in methods.available()
    }


def _summary(name: str) -> str:
    """The first paragraph of a method's docstring."""
    from ciod import methods

    return _plain(methods.find(name).__doc__).replace("``", "`")


def methods_markdown() -> str:
    """``fits`` as the README shows it."""
    rows = fits()
    families = list(next(iter(rows.values())))
    lines = [f"| method | {' | '.join(families)} | what it does |", f"| --- |{' :-: |' * len(families)} --- |"]
    for method, row in rows.items():
        marks = " | ".join("✓" if row[f] else "–" for f in families)
        lines.append(f"| `{method}` | {marks} | {_summary(method)} |")
    return "\n".join(lines)


def _methods() -> Table:
    from ciod import methods

    rows = fits()
    families = list(next(iter(rows.values())))
    table = _table("method", *families, "what it does, and the paper")
    for method, row in rows.items():
        summary = Text(_summary(method))
        if paper := methods.find(method).paper:
            summary.append(f"  {paper}", style="dim")
        table.add_row(method, *("✓" if row[f] else "–" for f in families), summary)
    return table


def _method(name: str) -> Table:
    """The settings of one method."""
    from ciod import methods
    from ciod.config import catalogue

    table = _table(f"method.…  ({name})", "default", "meaning")
    for s in catalogue.settings(methods.find(name)):
        table.add_row(s.key, s.default, s.note)
    return table


def _scenarios() -> Table:
    from ciod.data.scenarios import scenario

    table = _table("scenario", "split", "order", "what")
    for name in scenario.available():
        p = scenario.read_protocol(name)
        order = p.order if isinstance(p.order, str) else "a list"
        split = p.split
        if not isinstance(split, str):  # eighty names would fill the screen; --dry-run prints them
            split = "+".join(str(len(group) if isinstance(group, list) else group) for group in split)
        table.add_row(name, split, order, p.description)
    return table


def _recipes() -> Table:
    from ciod.config.load import RECIPES, recipes

    table = _table("recipe", "published", "expected time")
    for name in recipes():
        table.add_row(name, *(header_value(RECIPES / f"{name}.yaml", word) for word in ("published", "time")))
    return table


def header_value(recipe: Path, word: str) -> str:
    """The text after ``# word:`` in the comments at the top of a recipe."""
    head = [line[1:].strip() for line in recipe.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    return next((line.partition(":")[2].strip() for line in head if line.startswith(f"{word}:")), "—")


def _settings() -> Table:
    from ciod.config import catalogue
    from ciod.config.load import TABLE
    from ciod.training.effort import KEYS

    short = {full: key for key, full in TABLE.short.items() if full.startswith("protocol.")}
    table = _table("setting", "default", "what")
    for s in catalogue.settings(TABLE.model, by_effort=KEYS):
        table.add_row(short.get(s.key, s.key), s.default, s.note)
    return table


def environment() -> str:
    """Versions and machine, one per line, for bug reports."""
    import platform

    from ciod.runs import environment as runs_environment

    versions = runs_environment.versions(optional=True)
    if commit := runs_environment.commit():
        versions["ciod"] += f", commit {commit}"
    lines = [f"{name} {version}" for name, version in versions.items()]
    return "\n".join([*lines, runs_environment.describe(), platform.platform()])


def _model(console: Console, path: Path) -> None:
    from ciod.detectors.files.weights import read_metadata

    if not is_file(path):
        no_model_file(path, (".safetensors",))
    meta = read_metadata(path)
    shown = {k: v for k, v in meta["detector"].items() if k != "config" or len(str(v)) < 80}
    settings = ", ".join(f"{k}={v}" for k, v in shown.items())
    console.print(f"{path}: {settings}; {len(meta['class_names'])} classes", markup=False, soft_wrap=True)
    _lineage(console, meta["lineage"])


def _hf(console: Console, name: str) -> None:
    """What a folder of transformers says of itself."""
    from ciod.detectors.query import hf

    found = hf.describe(name)
    names = [found.labels[i] for i in found.rows]
    place = "stretched" if found.input.place == "stretch" else "with a border"
    classes = f"{len(names)} classes: {_few(names)}" if names else f"{len(found.labels)} classes, not named"
    line = f"{name}: {found.config['model_type']}, pictures of {found.input.size} pixels, {place}; {classes}"
    console.print(line, markup=False, soft_wrap=True)


def _onnx(console: Console, path: Path) -> None:
    """What an ONNX file says of itself: what ciod extended it by, or what its maker wrote."""
    from ciod.detectors.onnx import pictures, written

    opened = written.open_file(path)
    whole, extended = opened.whole, opened.written
    maker = f" from {whole.made_by}" if whole.made_by else ""
    names = pictures.names_of(whole, None) if extended is None else extended.class_names
    classes = "classes not named" if names is None else f"{len(names)} classes"
    nodes = f"{len(whole.content.graph.node)} nodes, opset {whole.opset}{maker}"
    console.print(f"{path}: {nodes}; {classes}", markup=False, soft_wrap=True)
    _lineage(console, [] if extended is None else extended.lineage)
    if extended is None:
        console.print(f"ciod check {path} says what it is taken for.", markup=False, soft_wrap=True)


def _lineage(console: Console, lineage: Sequence[dict[str, Any]]) -> None:
    for i, step in enumerate(lineage, 1):
        console.print(f"{i}. {_arrived(step)}", markup=False, soft_wrap=True)
        console.print(f"   {_origin(step)}", markup=False, soft_wrap=True)


def _arrived(step: dict[str, Any]) -> str:
    """The classes of a step of the lineage: new ones, those trained further, those removed."""
    parts = [_few(step.get("classes", []))]
    parts += [
        f"{word} {_few(step[key])}" for key, word in (("taught", "further:"), ("dropped", "dropped:")) if step.get(key)
    ]
    return "; ".join(p for p in parts if p)


def _origin(step: dict[str, Any]) -> str:
    """The origin of the classes of a step: data, method, date, hash; unknown values are left out."""
    counts = [f"{step[k]} {k}" for k in ("images", "boxes", "epochs") if k in step]
    method = str((step.get("method") or {}).get("name", ""))
    parts = [
        f"from {step.get('data', step.get('from', 'an unknown place'))}",
        *counts[:2],
        method,
        *counts[2:],
        f"seed {step['seed']}" if "seed" in step else "",
        str(step.get("when", ""))[:10],
        f"data sha256 {step['data_sha256'][:12]}" if step.get("data_sha256") else "",
    ]
    return ", ".join(p for p in parts if p)


def _few(names: Sequence[str], most: int = 12) -> str:
    """All names, or the first ones and the total number."""
    return ", ".join(names[:most]) + (f", … ({len(names)})" if len(names) > most else "")


def _scenario(console: Console, name: str, settings: dict[str, Any]) -> None:
    """Images, boxes and hidden boxes of every task, before any training."""
    from ciod.config import load as config
    from ciod.data.scenarios import scenario
    from ciod.data.scenarios.scenario import Scenario
    from ciod.runs.start import open_data

    if not name.endswith((".yaml", ".yml")) and name not in scenario.available():
        if is_model(Path(name)):
            raise CiodError(
                f"list: {name} does not describe itself, as a .safetensors of ciod and an .onnx do; "
                "'ciod eval' and 'ciod predict' read it."
            )
        hint = did_you_mean(name, (*TOPICS, *scenario.available()), listing=20)
        hint = hint.replace("'data'", "'data PATH'")
        raise CiodError(f"list: there is no '{name}'; {hint}")
    run = config.load(None, {"scenario": name, **settings})
    made = Scenario(run.protocol, *open_data(run))
    for sentence in made.sentences():
        console.print(f"- {sentence}", markup=False)
    table = _table("task", "new classes", "images", "boxes", "old boxes hidden", "future boxes hidden", "test images")
    for task in made:
        names = _few(task.new_classes)
        counts = (len(task.train), len(task.train.labels), task.hidden_boxes, task.future_boxes, len(task.test))
        table.add_row(str(task.index + 1), names, *map(str, counts))
    console.print(table)
    if made.protocol.images == "loco":
        from ciod.data.scenarios import loco

        for i, names in enumerate(made.groups, 1):
            console.print(f"cluster {i}: {', '.join(names)}", markup=False, soft_wrap=True)
        shared = loco.shared_images(made.train, made.groups)
        console.print(f"{shared} training images show classes of more than one cluster", markup=False)
    left = [n for n in made.protocol.order if n not in made.classes] if isinstance(made.protocol.order, list) else []
    if left:
        console.print(f"in no task: {', '.join(left)}", markup=False)

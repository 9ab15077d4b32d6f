"""The topics of ``ciod list``: what ciod has."""

from __future__ import annotations

from pathlib import Path

from rich.text import Text

from ciod.listing.sheet import Cell, Sheet

_COLUMNS = ("detector", "offers", "parameters (80 classes)")


def detectors() -> Sheet:
    """What each detector offers, and its size with 80 classes."""
    from ciod import detectors as known

    sheet = Sheet(columns=_COLUMNS, rows=[_row(name) for name in known.available()])
    sheet.rows.append(("mmdet:CONFIG", "a dense detector of MMDetection: docs/mmdetection.md", ""))
    sheet.rows.append(("hf:FOLDER", "a query detector of transformers: docs/query-detectors.md", ""))
    sheet.rows.append(("FILE.py:CLASS", "a detector of your own: docs/adding-a-detector.md", ""))
    return sheet


def detector(name: str) -> Sheet:
    """What one detector offers; of a class in a file: each of its variants.

    Raises:
        CiodError: there is no such detector.
    """
    from ciod import detectors as known
    from ciod.detectors import own

    if not known.is_own(name):
        known.find(name)
        return Sheet(columns=_COLUMNS, rows=[_row(name)])
    about = _plain(known.find(name).__doc__)
    return Sheet([about] if about else [], columns=_COLUMNS, rows=[_row(n) for n in own.names(name)])


def _row(name: str) -> tuple[Cell, ...]:
    import torch

    from ciod import detectors as known

    offers = ", ".join(sorted(known.traits(name)))
    if extra := known.lacking(name):
        return name, offers, f"pip install 'ciod[{extra}]'"
    with torch.device("meta"):
        n = sum(p.numel() for p in known.build([str(i) for i in range(80)], name=name).parameters())
    return name, offers, f"{n / 1e6:.1f} M"


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


def methods() -> Sheet:
    """What each method does, its paper, and the detectors that it runs on."""
    from ciod import methods as known

    rows = fits()
    families = list(next(iter(rows.values())))
    sheet = Sheet(columns=("method", *families, "what it does, and the paper"))
    for method, row in rows.items():
        summary = Text(_summary(method))
        if paper := known.find(method).paper:
            summary.append(f"  {paper}", style="dim")
        cells: list[Cell] = [method, *("✓" if row[f] else "–" for f in families), summary]
        sheet.rows.append(tuple(cells))
    return sheet


def method(name: str) -> Sheet:
    """The settings of one method, and how to cite it."""
    from ciod import methods as known
    from ciod.config import catalogue
    from ciod.methods.base.papers import bibtex

    cls = known.find(name)
    sheet = Sheet([_summary(name)] if ".py" not in name else [], columns=(f"method.…  ({name})", "default", "meaning"))
    for s in catalogue.settings(cls):
        sheet.rows.append((s.key, s.default, s.note))
    cite = bibtex(name)
    sheet.after = ["To cite it:", "", cite] if cite else []
    sheet.content = {"method": name, "paper": cls.paper, "bibtex": cite}
    return sheet


def scenarios() -> Sheet:
    """The scenarios that come with ciod."""
    from ciod.data.scenarios import scenario

    sheet = Sheet(columns=("scenario", "split", "order", "what"))
    for name in scenario.available():
        p = scenario.read_protocol(name)
        order = p.order if isinstance(p.order, str) else "a list"
        split = p.split
        if not isinstance(split, str):  # eighty names would fill the screen; --dry-run prints them
            split = "+".join(str(len(group) if isinstance(group, list) else group) for group in split)
        sheet.rows.append((name, split, order, p.description))
    return sheet


def recipes() -> Sheet:
    """The recipes of papers."""
    from ciod.config.load import RECIPES
    from ciod.config.load import recipes as known

    sheet = Sheet(columns=("recipe", "published", "expected time"))
    for name in known():
        cells = (header_value(RECIPES / f"{name}.yaml", word) for word in ("published", "time"))
        sheet.rows.append((name, *cells))
    return sheet


def header_value(recipe: Path, word: str) -> str:
    """The text after ``# word:`` in the comments at the top of a recipe."""
    head = [line[1:].strip() for line in recipe.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    return next((line.partition(":")[2].strip() for line in head if line.startswith(f"{word}:")), "—")


def settings() -> Sheet:
    """Every setting of ``ciod train``."""
    from ciod.config import catalogue
    from ciod.config.load import TABLE
    from ciod.training.effort import KEYS

    short = {full: key for key, full in TABLE.short.items() if full.startswith("protocol.")}
    sheet = Sheet(columns=("setting", "default", "what"))
    for s in catalogue.settings(TABLE.model, by_effort=KEYS):
        sheet.rows.append((short.get(s.key, s.key), s.default, s.note))
    return sheet


def data_set(path: str) -> Sheet:
    """Splits, classes and problems of a data set."""
    from ciod.data.describe import look

    found = look(path)
    columns, rows = found.rows()
    return Sheet(columns=columns, rows=[*rows], content=found.content(), people=found.renderable())


def _plain(text: str | None) -> str:
    """First paragraph of a docstring on one line."""
    return " ".join((text or "").split("\n\n")[0].split())


def environment() -> str:
    """Versions and machine, one per line, for bug reports."""
    import platform

    from ciod.runs import environment as runs_environment

    versions = runs_environment.versions(optional=True)
    if commit := runs_environment.commit():
        versions["ciod"] += f", commit {commit}"
    lines = [f"{name} {version}" for name, version in versions.items()]
    return "\n".join([*lines, runs_environment.describe(), platform.platform()])

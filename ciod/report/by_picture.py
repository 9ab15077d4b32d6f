"""Statistics over the test pictures of several runs: bootstrap intervals, and which class takes whose boxes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ciod.core.errors import CiodError
from ciod.data.scenarios.folds import group_names
from ciod.evaluation import pictures, statistics
from ciod.evaluation.pictures import Pictures
from ciod.report.summary import Results, done

WORK = 4e8  # detections × draws up to which all draws are made
DRAWS = (200, 1000)
KINDS = ("own class", "other old class", "other new class", "no box")
"""What is found on an object: a box of its class, of another class, or none."""


@dataclass(frozen=True)
class Outcome:
    """The test pictures of one finished run after its last task."""

    name: str
    seed: Any
    old: tuple[str, ...]
    new: tuple[str, ...]
    pictures: Pictures
    groups: tuple[str, ...]
    """Per picture, the group that is resampled together with it: its group in grouped folds, otherwise its own name."""


def outcomes(runs: Sequence[tuple[str, Results, Path]]) -> list[Outcome]:
    """The outcomes of runs with more than one task whose folders have them.

    Args:
        runs: name, content of results.json, folder.
    """
    found = []
    for name, results, folder in runs:
        tasks = done(results)
        outcome = pictures.read(folder / f"task-{len(tasks)}") if len(tasks) > 1 else None
        if outcome is not None:
            old, new = (tuple(tasks[-1].get(k) or ()) for k in ("old_classes", "new_classes"))
            if foreign := [n for n in (*old, *new) if n not in outcome.classes]:
                raise CiodError(
                    f"{folder / 'results.json'} has the class {foreign[0]}, but {pictures.NAME} of its last task "
                    f"does not: they are from different runs. Remove {folder} and repeat the command to train it again."
                )
            found.append(Outcome(name, results.get("seed"), old, new, outcome, _groups(outcome.files, results)))
    return found


def _groups(files: Sequence[str], results: Results) -> tuple[str, ...]:
    pattern = (results.get("scenario") or {}).get("group")
    if not isinstance(pattern, str):
        return tuple(files)
    try:
        return tuple(group_names([Path(f) for f in files], pattern))
    except (CiodError, re.error):  # of a run whose files or settings were changed by hand
        return tuple(files)


def intervals(found: Sequence[Outcome], against: str) -> dict[str, dict[str, tuple[float, float]]]:
    """Method → column → 95 % bootstrap interval of its mean difference to ``against``, over test pictures.

    A picture is drawn as often in all runs that test it, and pictures of one group (frames of one video) together. The
    interval shows what other test pictures would change, with the trained models as they are; the t interval over seeds
    shows what other training would change.
    """
    units = {g: i for i, g in enumerate(dict.fromkeys(g for o in found for g in o.groups))}
    work = sum(len(o.pictures.score) for o in found)
    counts = statistics.resampled(len(units), int(np.clip(WORK / max(1, work), *DRAWS)))
    scores: dict[tuple[str, Any], dict[str, np.ndarray]] = {}
    for o in found:
        own = counts[:, [units[g] for g in o.groups]]
        aps = pictures.ap50(o.pictures, own)
        where = {n: i for i, n in enumerate(o.pictures.classes)}
        groups = {"old_after": o.old, "new": o.new, "all_ap50": (*o.old, *o.new)}
        scores[o.name, o.seed] = {k: _mean(aps[:, [where[n] for n in names]]) for k, names in groups.items()}
    result: dict[str, dict[str, tuple[float, float]]] = {}
    for name in dict.fromkeys(o.name for o in found if o.name != against):
        both = [(scores[n, s], scores[against, s]) for n, s in scores if n == name and (against, s) in scores]
        for key in ("old_after", "new", "all_ap50"):
            draws = [a[key] - b[key] for a, b in both]
            interval = statistics.bootstrap(_mean(np.stack(draws, 1)).tolist()) if draws else None
            if interval:
                result.setdefault(name, {})[key] = interval
    return result


def _mean(values: np.ndarray) -> np.ndarray:
    """[B] mean of the known values of each row; NaN if there are none."""
    known = np.isfinite(values)
    return np.where(known.any(1), np.where(known, values, 0).sum(1) / np.maximum(known.sum(1), 1), np.nan)


def confusion(found: Sequence[Outcome]) -> dict[str, dict[str, np.ndarray]]:
    """Method → ``old`` and ``new`` objects → [4] numbers of objects per entry of ``KINDS``, over all seeds."""
    result: dict[str, dict[str, np.ndarray]] = {}
    for o in found:
        table, classes = pictures.taken(o.pictures), o.pictures.classes
        is_old = np.array([n in o.old for n in classes])
        counts = result.setdefault(o.name, {g: np.zeros(len(KINDS), np.int64) for g in ("old", "new")})
        for row, mine in enumerate(is_old):
            own = table[row, row]
            others = table[row, :-1].copy()
            others[row] = 0
            parts = [own, others[is_old].sum(), others[~is_old].sum(), table[row, -1]]
            counts["old" if mine else "new"] += np.array(parts)
    return result


def pairs(found: Sequence[Outcome], most: int = 5) -> dict[str, list[tuple[str, str, int, int]]]:
    """Method → the most frequent confusions: class, the class that takes its objects, number of them, number of all."""
    counts: dict[str, dict[tuple[str, str], int]] = {}
    objects: dict[str, dict[str, int]] = {}
    for o in found:
        table, classes = pictures.taken(o.pictures), o.pictures.classes
        mine, total = counts.setdefault(o.name, {}), objects.setdefault(o.name, {})
        for i, name in enumerate(classes):
            total[name] = total.get(name, 0) + int(table[i].sum())
            for j in np.flatnonzero(table[i, :-1]):
                if i != j:
                    mine[name, classes[j]] = mine.get((name, classes[j]), 0) + int(table[i, j])
    ranked: Mapping[str, list[tuple[str, str, int, int]]] = {
        name: sorted(((a, b, n, objects[name][a]) for (a, b), n in found.items()), key=lambda x: (-x[2], x[:2]))
        for name, found in counts.items()
    }
    return {name: rows[:most] for name, rows in ranked.items()}

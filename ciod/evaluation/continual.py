"""Metrics of learning and forgetting from a task × class table of AP: pure functions, independent of the source.

``table[t]`` holds the AP (or AP50, …) of every seen class after task t, ``tasks[t]`` the classes that it taught. Where
tasks repeat classes, a class is old if the last task did not teach it, and it was learnt in the last task that did.
Values may be fractions or points; results are in the same unit, except the ratios Ω, RelGap, retention, RSD, RPD, RAI.
None and NaN mean "no ground truth" and are left out of every mean. A value that cannot be computed is None, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

Row = Mapping[str, "float | None"]


def _known(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None and not math.isnan(v)]
    return math.fsum(known) / len(known) if known else None


def group_mean(row: Row, names: Iterable[str]) -> float | None:
    """Mean AP of a group of classes, without those that have no ground truth; None if none has any.

    A class that is not in ``row`` was not evaluated and is left out, too.
    """
    return _mean(row.get(n) for n in names)


def omega(final_per_task: Sequence[float | None], upper: Sequence[float | None]) -> float | None:
    """Ω(T) = (1/T) Σ_{t=1..T} X_t / UB_t: the performance relative to joint training, averaged over all tasks.

    X_t is the mean AP over all classes seen up to task t, UB_t that of a model trained on them jointly. The first
    term is 1 if ``upper[0]`` is None: a first task is its own joint training.

    Returns:
        None if a later upper bound (or AP) is missing or an upper bound is 0.

    Raises:
        ValueError: the lengths differ.

    Source: Hayes et al., New Metrics and Experimental Paradigms for Continual Learning (CVPR workshops 2018), Ω_all,
    in the form that reproduces every Ω of ILYOLOX's two-step table (its own rows and those of LwF, RILOD, SID, ERD).
    """
    if len(final_per_task) != len(upper):
        raise ValueError(
            f"{len(final_per_task)} tasks but {len(upper)} upper bounds; give one per task, None if unknown"
        )
    ratios = [_ratio(x, ub) for x, ub in zip(final_per_task, upper)]
    if ratios and not _known(upper[0]):
        ratios[0] = 1.0
    known = [r for r in ratios if r is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(ratios) else None


def _ratio(part: float | None, whole: float | None) -> float | None:
    if part is None or whole is None or math.isnan(part) or math.isnan(whole) or whole == 0:
        return None
    return part / whole


def abs_gap(final: float | None, upper: float | None) -> float | None:
    """AbsGap = UB_T − X_T: the gap to joint training after the last task. Source: the tables of ILYOLOX."""
    return upper - final if final is not None and upper is not None and _known(final) and _known(upper) else None


def rel_gap(final: float | None, upper: float | None) -> float | None:
    """RelGap = (UB_T − X_T) / UB_T, a fraction (papers print percent). Source: the tables of ILYOLOX."""
    return _ratio(abs_gap(final, upper), upper)


def _old(tasks: Sequence[Sequence[str]]) -> list[str]:
    """Classes that earlier tasks taught and the last one did not, each once."""
    return [n for n in dict.fromkeys(n for names in tasks[:-1] for n in names) if n not in tasks[-1]]


def forgetting(table: Sequence[Row], tasks: Sequence[Sequence[str]]) -> float | None:
    """F = mean over old classes c of (max_{t<T} AP_{t,c} − AP_{T,c}); negative if old classes improved.

    Old classes are those of all tasks except the last; each is compared with its best previous task.
    Source: Chaudhry et al., Riemannian Walk (ECCV 2018), with AP for accuracy and classes for tasks.
    """
    drops: list[float | None] = []
    for name in _old(tasks):
        before = [v for row in table[:-1] if (v := row.get(name)) is not None and not math.isnan(v)]
        drops.append(abs_gap(table[-1].get(name), max(before, default=None)))
    return _mean(drops)


def forgetting_points(table: Sequence[Row], tasks: Sequence[Sequence[str]]) -> float | None:
    """FPP = mean AP of the base classes (task 1) after task 1 − after task T.

    Source: the "forgetting percentage points" that papers on incremental DETRs report on COCO 70+10.
    """
    if len(table) < 2:
        return None
    return abs_gap(group_mean(table[-1], tasks[0]), group_mean(table[0], tasks[0]))


def retention(table: Sequence[Row], tasks: Sequence[Sequence[str]]) -> float | None:
    """Retention = Σ_c AP_{T,c} / Σ_c AP_{t(c),c} over old classes; t(c) is the task in which class c was learnt.

    1 = nothing forgotten. It is a ratio of means and not a mean of ratios, so a class that was never learnt does not
    dominate it.
    """
    learnt = {n: row.get(n) for row, names in zip(table, tasks[:-1]) for n in names}  # the last row that taught it
    pairs = [(learnt[n], table[-1].get(n)) for n in _old(tasks)]
    both = [(before, after) for before, after in pairs if _known(before) and _known(after)]
    return _ratio(_mean(a for _, a in both), _mean(b for b, _ in both))


def deficiency(row: Row, joint: Row, names: Iterable[str]) -> float | None:
    """Mean over ``names`` of (AP_joint,c − AP_c) / AP_joint,c, a fraction (papers print percent).

    Over the old classes it is RSD, the rate of stability deficiency; over the last task's classes RPD, of plasticity.
    A class whose joint AP is 0 or unknown is left out.

    Source: Menezes et al., Continual Object Detection: A Review of Definitions, Strategies, and Challenges
    (Neural Networks 2023).
    """
    return _mean(_ratio(abs_gap(row.get(n), joint.get(n)), joint.get(n)) for n in names)


def retention_adaptability(table: Sequence[Row], tasks: Sequence[Sequence[str]], joint: Row) -> float | None:
    """RAI = (mean retention + mean generalisation) / 2 over the tasks from the second on.

    Retention of task t: mean AP of its old classes ÷ that of the same classes right after their own task.
    Generalisation: mean AP of its new classes ÷ their mean AP in the joint model. DuET's reference model belongs to a
    sequence of domains; here the joint model replaces it, so the numbers cannot be compared with DuET's.

    Source: Monga et al., DuET (ICCV 2025), the retention-adaptability index.
    """
    kept = [retention(table[: t + 1], tasks[: t + 1]) for t in range(1, len(table))]
    learnt = []
    for row, names in zip(table[1:], tasks[1:]):
        both = [(row.get(n), joint.get(n)) for n in names if _known(row.get(n)) and _known(joint.get(n))]
        learnt.append(_ratio(_mean(a for a, _ in both), _mean(b for _, b in both)))
    r, g = _mean(kept), _mean(learnt)
    return None if r is None or g is None else (r + g) / 2


def harmonic_mean(old: float | None, new: float | None) -> float | None:
    """H = 2·old·new / (old + new): high only if both old and new classes are. 0 if both are 0."""
    if old is None or new is None or math.isnan(old) or math.isnan(new):
        return None
    return 2 * old * new / (old + new) if old + new else 0.0


KEYS = (
    "omega",
    "abs_gap",
    "rel_gap",
    "forgetting",
    "retention",
    "forgetting_points",
    "harmonic_mean",
    "stability_deficiency",
    "plasticity_deficiency",
    "retention_adaptability",
)


def against_upper(final: Sequence[float | None], upper: Sequence[float | None] | None) -> dict[str, float | None]:
    """Ω, AbsGap and RelGap of means over the classes seen, for each of COCO's six APs, including those by object size.

    Args:
        final: per finished task, the AP over the classes seen so far.
        upper: per task, the joint-training AP over the same classes; missing values count as unknown.
    """
    if not final:
        return dict.fromkeys(KEYS[:3])
    bounds = (list(upper or []) + [None] * len(final))[: len(final)]
    return {
        "omega": omega(final, bounds) if upper is not None else None,
        "abs_gap": abs_gap(final[-1], bounds[-1]),
        "rel_gap": rel_gap(final[-1], bounds[-1]),
    }


def summary(
    table: Sequence[Row],
    tasks: Sequence[Sequence[str]],
    upper: Sequence[float | None] | None = None,
    joint: Row | None = None,
) -> dict[str, float | None]:
    """Every metric of this file after the last task in ``table``; the run may be unfinished.

    Args:
        table: per finished task, the AP of each class seen so far.
        tasks: per task, the classes that it taught; at least as many as ``table`` has rows.
        upper: per task, the joint-training AP over the classes seen so far; None if unknown.
        joint: the AP of each class in the model trained jointly on all classes.

    Returns:
        ``KEYS``: omega, abs_gap, rel_gap, forgetting, retention, forgetting_points, harmonic_mean (of the mean AP of
        the old classes and of the last task's), stability_deficiency (RSD), plasticity_deficiency (RPD),
        retention_adaptability (RAI); None where undefined, as most are after one task.

    Raises:
        ValueError: the table has more rows than there are tasks.
    """
    if len(table) > len(tasks):
        raise ValueError(f"the table has {len(table)} rows for {len(tasks)} tasks")
    tasks = [list(names) for names in tasks[: len(table)]]
    if not table:
        return dict.fromkeys(KEYS)
    seen = [list(dict.fromkeys(n for names in tasks[: t + 1] for n in names)) for t in range(len(table))]
    final = [group_mean(row, names) for row, names in zip(table, seen)]
    new, old = group_mean(table[-1], tasks[-1]), group_mean(table[-1], _old(tasks))
    later = joint if joint is not None and len(table) > 1 else {}  # after one task nothing is old or new
    values = (
        *against_upper(final, upper).values(),
        forgetting(table, tasks),
        retention(table, tasks),
        forgetting_points(table, tasks),
        harmonic_mean(old, new),
        deficiency(table[-1], later, _old(tasks)),
        deficiency(table[-1], later, tasks[-1]),
        retention_adaptability(table, tasks, later),
    )
    return dict(zip(KEYS, values, strict=True))

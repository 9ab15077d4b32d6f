"""When a ratio is meaningful: the base gate, and lower limits of denominators.

Retention divides by the AP that the old classes had when they were learnt. If the first task stopped early, the second
keeps teaching its classes, and retention then measures speed of learning, not forgetting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ciod.report.summary import FAINT, Results, ap_rows, before_after, done, mean, percent, score


@dataclass(frozen=True)
class Gate:
    """When the ratios of a run are shown."""

    share: float = 0.0
    """Minimum share of joint training's AP50 that a first task must reach on its classes; 0: no gate."""
    joint: Mapping[Any, Results] = field(default_factory=dict)
    """Seed → results of joint training of all classes, if it is not among the runs."""


NO_GATE = Gate()
FLOOR = FAINT
"""Minimum denominator (AP or AP50 as a fraction) of a ratio that is shown."""
RATIOS = ("retention", "rel_gap", "omega", "stability", "plasticity", "rai")
"""The columns of a comparison that are ratios of APs."""


def base_of(results: Results, joint: Results | None) -> tuple[float | None, float | None]:
    """AP50 of the first task's classes after the first task, and in joint training of all classes."""
    rows, tasks = ap_rows(results, "AP50"), done(results)
    if not rows or len(tasks) < 2:
        return None, None
    names = tasks[0].get("new_classes") or []
    bound = (ap_rows(joint, "AP50") or [{}])[-1] if joint is not None else {}
    both = [n for n in names if rows[0].get(n) is not None and (joint is None or bound.get(n) is not None)]
    return mean([rows[0].get(n) for n in both]), mean([bound.get(n) for n in both]) if bound else None


def withheld(results: Results, joint: Results | None, gate: float) -> dict[str, str]:
    """Ratio (of ``RATIOS``) → why it is not shown.

    Args:
        joint: joint training of all classes with the same seed.
        gate: minimum share of joint training's AP50 that the first task must reach on its classes; 0: no gate.
    """
    base, bound = base_of(results, joint)
    if gate and base is not None and bound and base / bound < gate:
        reason = f"the base has {percent(base / bound, ' %')} of joint training's AP50 on its classes"
        return dict.fromkeys(RATIOS, reason)
    found = {}
    before = before_after(results, "AP50")[0]
    if before is not None and before < FLOOR:
        found |= dict.fromkeys(("retention", "rai"), _low("AP50 of the old classes when they were learnt", before))
    total = score(joint, -1, "all", "AP") if joint is not None else None
    if total is not None and total < FLOOR:
        found |= dict.fromkeys(("rel_gap", "omega"), _low("AP of joint training", total))
    bounds = [(b or {}).get("AP") for b in results.get("upper_bounds") or []]
    least = min((b for b in bounds if b is not None), default=None)
    if least is not None and least < FLOOR:
        found["omega"] = _low("AP of joint training after a task", least)
    rows = ap_rows(joint, "AP") if joint is not None else []
    last: Mapping[str, Any] = (done(results) or [{}])[-1]
    for key, group in (("stability", "old_classes"), ("plasticity", "new_classes"), ("rai", "new_classes")):
        known = [rows[-1].get(n) for n in last.get(group) or []] if rows else []
        lowest = min((v for v in known if v is not None), default=None)
        if lowest is not None and lowest < FLOOR:
            found.setdefault(key, _low("AP of joint training on a class", lowest))
    return found


def _low(what: str, value: float) -> str:
    return f"{what} is {percent(value, ' %')}, below {percent(FLOOR, ' %')}"

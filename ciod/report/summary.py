"""A summary of a run's results: a verdict in sentences, and tables for a terminal or Markdown.

``results`` is the content of a run's ``results.json``. All functions accept missing keys, nulls and unfinished runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ciod.core.plural import counted

if TYPE_CHECKING:
    from rich.table import Table

Results = Mapping[str, Any]
Runs = Sequence[tuple[str, Results]]
NONE = "–"  # shown for a missing number
FAINT = 0.05  # AP below which classes were hardly learnt, so that a ratio says nothing about forgetting


@dataclass(frozen=True)
class Change:
    """One old class: its AP when it was learnt and after the last task (fractions; None = not known)."""

    name: str
    task: int  # the index of the task that taught it
    before: float | None
    after: float | None

    @property
    def loss(self) -> float | None:
        return None if self.before is None or self.after is None else self.before - self.after


def percent(value: float | None, sign: str = "") -> str:
    """A fraction as a percentage with one decimal; "–" for None and NaN.

    >>> percent(0.6213, " %")
    '62.1 %'
    """
    if value is None or value != value:
        return NONE
    return f"{100 * value:.1f}".replace("-0.0", "0.0") + sign


def duration(seconds: float | None) -> str:
    """
    >>> duration(83)
    '1 min 23 s'
    """
    if seconds is None or seconds != seconds:
        return NONE
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, s = divmod(round(seconds), 60)
    return f"{minutes} min {s:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def done(results: Results) -> list[Mapping[str, Any]]:
    """The finished tasks."""
    return list(results.get("tasks") or [])


def beside(results: Results, task: int = -1) -> str:
    """Additional images of a task, such as "50 images of earlier tasks"; "" for none."""
    kinds = {"memory_images": ("image", "of earlier tasks"), "pool_images": ("picture", "of a pool, without labels")}
    found = (done(results) or [{}])[task]
    return " and ".join(f"{counted(n, noun)} {which}" for k, (noun, which) in kinds.items() if (n := found.get(k)))


def planned(results: Results) -> int:
    """Number of tasks of the scenario."""
    scenario = results.get("scenario") or {}
    return 1 if scenario.get("joint") else max(len(scenario.get("split") or []), len(done(results)))


def subset(results: Results) -> str | None:
    """The part of the images that a smoke test used; None for a full run."""
    return (results.get("scenario") or {}).get("subset")


def headline(results: Results) -> str:
    """The main metric of a scenario in addition to AP: AP50, or VOC's under its own name."""
    return _HEADLINES.get((results.get("scenario") or {}).get("metric") or "", "AP50")


_HEADLINES = {"voc07": "VOC07", "voc": "VOC"}


def score(results: Results, task: int, group: str, metric: str) -> float | None:
    """AP or AP50 of the ``old``, ``new`` or ``all`` classes after a task (negative counts from the last)."""
    tasks = done(results)
    if not -len(tasks) <= task < len(tasks):
        return None
    return (tasks[task].get(group) or {}).get(metric)


def ap_rows(results: Results, metric: str) -> list[Mapping[str, float | None]]:
    """One {class: AP} per finished task."""
    rows = list((results.get("ap") or {}).get(metric) or [])[: len(done(results))]
    return [row or {} for row in rows]


def class_order(results: Results) -> list[str]:
    """Class names in the order of arrival, as far as known."""
    names = dict.fromkeys((results.get("scenario") or {}).get("classes") or [])
    for task in done(results):
        names |= dict.fromkeys([*(task.get("old_classes") or []), *(task.get("new_classes") or [])])
    for row in ap_rows(results, "AP") + ap_rows(results, headline(results)):
        names |= dict.fromkeys(row)
    return list(names)


def taught(task: Mapping[str, Any]) -> list[str]:
    """The classes that a task taught: new ones, and old ones again."""
    return [*(task.get("repeated_classes") or []), *(task.get("new_classes") or [])]


def changes(results: Results, metric: str | None = None) -> list[Change]:
    """Every class that was old in the last finished task, the largest loss first, unknown ones last.

    ``metric``: None means the main metric of the scenario, here and below.
    """
    tasks, rows = done(results), ap_rows(results, metric or headline(results))
    if len(tasks) < 2 or len(rows) < len(tasks):
        return []
    learnt = {name: i for i, task in enumerate(tasks[:-1]) for name in taught(task)}
    again = set(taught(tasks[-1]))
    found = [Change(n, i, rows[i].get(n), rows[-1].get(n)) for n, i in learnt.items() if n not in again]
    return sorted(found, key=lambda c: (c.loss is None, -(c.loss or 0.0)))


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of the known values; None if there are none."""
    known = [v for v in values if v is not None and v == v]
    return sum(known) / len(known) if known else None


def before_after(results: Results, metric: str | None = None) -> tuple[float | None, float | None]:
    """Mean AP of the old classes when they were learnt, and after the last task; classes known at both times."""
    both = [c for c in changes(results, metric) if c.loss is not None]
    return mean([c.before for c in both]), mean([c.after for c in both])


def retention(results: Results, metric: str | None = None) -> float | None:
    """The run's own value, or else computed from the table."""
    given = ((results.get("continual") or {}).get(metric or headline(results)) or {}).get("retention")
    if given is not None:
        return given
    before, after = before_after(results, metric)
    return after / before if before and after is not None else None


def agreement(results: Results) -> float | None:
    """For an extension without old data: the share of old objects on which the old and the new model agree."""
    kept = (results.get("extension") or {}).get("retention") or {}
    return kept.get("value") if kept.get("kind") == "agreement" else None


def verdict(results: Results) -> str:
    """The result in one or two sentences, for readers who do not know AP matrices."""
    tasks, total = done(results), planned(results)
    if not tasks:
        return "Unfinished: no task is done yet, so nothing has been measured."
    start = "" if len(tasks) >= total else f"Unfinished, {len(tasks)} of {total} tasks done. "
    start = f"Smoke test with a subset of the images ({subset(results)}). {start}" if subset(results) else start
    m = headline(results)
    if len(tasks) == 1:
        return start + _one_task(results)
    again = len(tasks[-1].get("repeated_classes") or [])
    n_old, n_new = len(tasks[-1].get("old_classes") or []) - again, len(taught(tasks[-1]))
    later = sum(len(t.get("new_classes") or []) for t in tasks[1:])
    learnt = f"After learning {counted(later, 'new class')}" + (f" in {len(tasks) - 1} steps" if len(tasks) > 2 else "")
    if not later:
        learnt = f"After {counted(len(tasks) - 1, 'further task')} with the same classes"
    if len(tasks) == 2:
        old, of = (f"{n_old} old classes", f"its {m} on the") if n_old != 1 else ("old class", f"its {m} on the")
        had = ""
    else:
        old, of, had = f"{n_old} earlier classes", f"the {m} that the", " had when they were learnt"
    kept, (before, after) = retention(results), before_after(results)
    if again and not n_old:
        first = f"{learnt}, no class is old: the last task taught all of them."
    elif kept is None and before == 0:
        their = f"its {m} was 0 when it was" if n_old == 1 else f"their {m} was 0 when they were"
        first = f"{learnt}, the {old} had nothing to lose: {their} learnt."
    elif before is not None and before < FAINT:
        figures = f"{m} {percent(before)} → {percent(after)} %"
        first = f"{learnt}, the {old} had little to lose: {figures}."
    elif kept is None and agreement(results) is not None:
        share = percent(agreement(results), " %")
        first = f"{learnt}, old and new model agree on {share} of the objects of the {old} that they find."
    elif kept is None:
        be = "is" if n_old == 1 else "are"
        first = f"{learnt}, how well the {old} {be} kept is not known: there is no {m} to compare."
    else:
        figures = "" if before is None else f" ({percent(before)} → {percent(after)})"
        only = "only " if kept < 0.5 else ""
        first = f"{learnt} the detector keeps {only}{percent(kept, ' %')} of {of} {old}{had}{figures}."
    new = score(results, -1, "new", m)
    if new is None:
        second = f"There is no {m} for the new classes."
    else:
        which = "new" if len(tasks) == 2 else "newest"
        which = "last taught" if again else which
        subject = f"The {which} class reaches" if n_new == 1 else f"The {n_new} {which} classes reach"
        second = f"{subject} {percent(new, ' %')} {m}."
    return f"{start}{first} {second}"


def _one_task(results: Results) -> str:
    scenario, n = results.get("scenario") or {}, len(done(results)[0].get("new_classes") or [])
    m = headline(results)
    value = score(results, 0, "all", m)
    reached = f"there is no {m} to report" if value is None else f"the detector reaches {percent(value, ' %')} {m}"
    if scenario.get("joint"):
        return f"Trained on all {counted(n, 'class')} at once (joint training, the upper bound), {reached}."
    if planned(results) > 1:
        return f"On its first {counted(n, 'class')} {reached}."
    return f"Trained on {counted(n, 'class')}, {reached}."


def summary_table(results: Results) -> Table:
    """Old, new and all AP and AP50 (or VOC's) after each task, for the terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title="AP after each task (%)", title_style="bold", title_justify="left")
    m = headline(results)
    for name in ("task", "classes", "old AP", f"old {m}", "new AP", f"new {m}", "all AP", f"all {m}"):
        table.add_column(name, justify="left" if name in ("task", "classes") else "right")
    for i, task in enumerate(done(results)):
        n_old, n_new = len(task.get("old_classes") or []), len(task.get("new_classes") or [])
        cells = [percent(score(results, i, g, k)) for g in ("old", "new", "all") for k in ("AP", m)]
        table.add_row(str(i + 1), Text(f"{n_old}+{n_new}" if n_old else str(n_new)), *cells)
    return table


def is_joint(results: Results) -> bool:
    """Whether all classes were learnt in one task: the upper bound."""
    return bool((results.get("scenario") or {}).get("joint"))

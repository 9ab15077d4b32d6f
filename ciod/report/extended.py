"""An extension in the report and in the terminal: the new classes first, then the changes of the old ones.

``results`` is the content of ``results.json`` of ``ciod extend``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ciod.core.plural import counted
from ciod.report.summary import NONE, Results, agreement, before_after, percent, retention, score, subset

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = ("class", "AP", "AP50", "found", "false alarms per picture", "suggested threshold")


def rows(results: Results) -> list[dict[str, str]]:
    """One row per class that was learnt, new ones first: class, what it was (``new``, or AP50 before), and the values
    of ``COLUMNS``, all on the new photographs (``ap`` has classes that were taught further on old ones, if there are).
    """
    found = results["extension"]
    new = list(results["tasks"][-1].get("new_classes") or [])
    taught = [n for n in (found.get("names") or {}).get("taught") or [] if n not in new]
    alarms, tables = found.get("false_alarms") or {}, results.get("ap") or {}
    seen = {row["class"]: f"{row['found']} of {row['objects']}" for row in found.get("confusion") or []}

    further = {row["class"]: row["new"] for row in found.get("further") or []}

    def ap(metric: str, task: int, name: str) -> str:
        if name in further:
            return percent(further[name][metric][task])
        table = tables.get(metric) or []
        return percent((table[task] or {}).get(name)) if -len(table) <= task < len(table) else NONE

    listed = []
    for name in [*new, *taught]:
        rates = [r for s in alarms.get("sources") or [] if (r := (s.get("classes") or {}).get(name)) is not None]
        limit = (alarms.get("thresholds") or {}).get(name)
        listed.append(
            {
                "class": name,
                "what": "new" if name in new else f"known, AP50 before {ap('AP50', 0, name)}",
                "AP": ap("AP", -1, name),
                "AP50": ap("AP50", -1, name),
                "found": seen.get(name, NONE),
                "false alarms per picture": f"{max(rates):.3f}" if rates else NONE,
                "suggested threshold": NONE if limit is None else f"{limit:.2f}",
            }
        )
    return listed


def name_of(row: Mapping[str, str]) -> str:
    """The class of a row of ``rows``, and what it was if it is not new."""
    return row["class"] if row["what"] == "new" else f"{row['class']} ({row['what']})"


def table(results: Results) -> Table:
    """``rows`` for the terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    images = results["tasks"][-1].get("test_images")
    title = "what was learnt" + (f", measured on {counted(images, 'image')}" if images else "") + " (AP in %)"
    made = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for name in COLUMNS:
        made.add_column(name, justify="left" if name == "class" else "right")
    for row in rows(results):
        made.add_row(Text(name_of(row)), *(row[c] for c in COLUMNS[1:]))
    return made


def unchanged(results: Results) -> str | None:
    """On how many pictures the old outputs have the same bits; None: the method changes them."""
    found = results["extension"].get("unchanged")
    if not found:
        return None
    if found["identical"] == found["images"]:
        return f"Old outputs bit-identical, checked on {counted(found['images'], 'picture')}."
    return f"Old outputs are bit-identical on {found['identical']} of {found['images']} pictures only."


def verdict(results: Results) -> str:
    """The result in two or three sentences: the new classes, the old outputs, the old classes."""
    tasks = results.get("tasks") or []
    if len(tasks) < 2:
        return "Unfinished: nothing has been measured."
    old, new = len(tasks[-1].get("old_classes") or []), len(tasks[-1].get("new_classes") or [])
    value = score(results, -1, "new", "AP50")
    subject = "The new class reaches" if new == 1 else f"The {new} new classes reach"
    if not new:
        first = "No class is new."
    elif value is None:
        first = f"There is no AP50 for the {'new class' if new == 1 else f'{new} new classes'}."
    else:
        first = f"{subject} {percent(value, ' %')} AP50."
    if subset(results):
        first = f"Smoke test with a subset of the images ({subset(results)}). {first}"
    sentences = [first, unchanged(results), _old(results, old)]
    return " ".join(s for s in sentences if s)


def _old(results: Results, classes: int) -> str:
    same, which = agreement(results), counted(classes, "old class")
    if same is not None:
        return f"Old and new model agree on {percent(same, ' %')} of the objects of the {which} that they find."
    kept, (before, after) = retention(results), before_after(results)
    if kept is None or before is None:
        return f"How well the {which} {'is' if classes == 1 else 'are'} kept was not measured."
    rows = ((results.get("extension") or {}).get("retention") or {}).get("rows") or []
    if 0 < len(rows) < classes:  # the others have no AP
        which = f"{len(rows)} of {which} that the old data show"
    return f"The {which} keep {percent(kept, ' %')} of their AP50 ({percent(before)} → {percent(after)})."


def nothing_changed(kept: Sequence[Mapping[str, Any]]) -> bool:
    """Whether every row of a retention has the same values before and after."""
    return all(r["before"] == r["after"] and r["kept"] in (None, 1.0) for r in kept)


def content(results: Results) -> dict[str, Any] | None:
    """For ``extension.html.j2``; None for other runs."""
    found = results.get("extension")
    if not found:
        return None
    kept = found["retention"]
    return {
        "rows": rows(results) if results.get("tasks") else [],
        "columns": COLUMNS[1:],
        "why": found["plan"]["why"],
        "cost": found["cost"],
        "method": str((results.get("method") or {}).get("name", "")),
        "kind": kept["kind"],
        "same": nothing_changed(kept["rows"]),
        "kept": _kept(kept),
        "agreement": percent(kept["value"], " %"),
        "images": kept["images"],
        "found": found["found"]["classes"],
        "total": found["found"]["total"],
        "tradeoff": [
            {k: percent(row[k], " %") for k in ("share", "kept", "learnt")} for row in found.get("tradeoff") or []
        ],
        "unchanged": found.get("unchanged"),
        "split": found.get("split"),
        "further": [
            {"class": row["class"], **{k: [percent(v) for v in row[k]["AP50"]] for k in ("new", "old")}}
            for row in found.get("further") or []
        ],
        "alarms": _alarms(found.get("false_alarms")),
        "notes": [
            line
            for line in (results.get("scenario") or {}).get("protocol") or []
            if not line.startswith("Task 1 is the model")  # how results.json counts, which the page does not
        ],
        "confusion": [
            {**row, **{key: [f"{n} {k}" for n, k in (row.get(key) or {}).items()] for key in ("taken", "beside")}}
            for row in found.get("confusion") or []
        ],
    }


def _kept(kept: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per old class: AP before and after in %, or numbers of boxes."""
    shown: Any = percent if kept["kind"] == "AP" else lambda n: str(round(n))
    return [
        {
            "class": row["class"],
            "before": shown(row["before"]),
            "after": shown(row["after"]),
            "share": percent(row["kept"], " %"),
            "bad": row["kept"] is not None and row["kept"] < 0.9,
        }
        for row in kept["rows"]
    ]


def _alarms(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """False alarms of the new classes, one row per class; None: written before they were measured."""
    if found is None:
        return None
    names = list(dict.fromkeys(n for s in found["sources"] for n in s["classes"]))
    together = found["together"] or {}

    def shown(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}"

    return {
        "score": found["score"],
        "allowed": found["allowed"],
        "measured": found["measured"],
        "sources": [f"{s['source']} ({s['images']})" for s in found["sources"]],
        "rows": [
            {
                "name": n,
                "values": [shown(s["classes"].get(n)) for s in found["sources"]],
                "threshold": f"{t:.2f}" if (t := found["thresholds"].get(n)) is not None else "–",
            }
            for n in names
        ],
        "together": [percent(together.get(m), " %") for m in ("AP50", "AP")] if together else [],
    }

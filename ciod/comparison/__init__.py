"""Compares methods on one scenario: plans the runs, trains them in worker processes, and reports the results.

``plan`` lists the runs, ``schedule`` trains them, ``outcome`` writes the tables and the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["FAILED", "compare", "run"]

FAILED = "failed"


def compare(
    scenario: str | Path | None = None,
    *,
    methods: str | Sequence[str | Mapping[str, Any]] | None = None,
    seeds: int | Sequence[int] | None = None,
    jobs: int | None = None,
    upper: str | None = None,
    against: str | None = None,
    out: str | Path | None = None,
    cache: str | Path | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Trains every method with every seed, or resumes this, and returns the content of ``compare.json``.

    The first task is the same for all methods of a seed and is trained once.

    Args:
        scenario: a name of ``ciod list scenarios``, or a YAML file of settings, which may hold ``methods``, ``seeds``
            and the other arguments below, too (those given here take precedence); None with ``data=`` and ``split=``.
        methods: names, ``"finetune,ilyolox"`` or a list; a mapping of name, settings and (if wanted) label for a
            method with settings: ``["finetune", {"name": "ilyolox", "nms_iou": 0.65}]``. ``joint`` is the upper bound.
        seeds: 3 for 0, 1, 2; or a list. None: 1.
        jobs: number of parallel runs, each in its own process; they share the cores. None: 1.
        upper: joint models to train for Ω and the gaps: of all class ``prefixes``, the ``final`` one, ``none``;
            None: ``final`` for two tasks (Ω needs no other there), ``prefixes`` for more.
        against: label of the reference method, which is subtracted from the others per seed; None: the first.
        out: folder for runs, tables and page; None: ``runs/compare-SCENARIO``.
        cache: folder for first tasks and joint models, to share them between comparisons; None: ``out``.
        settings: of every run, as in ``ciod.train``.

    Raises:
        ConfigError: every problem of the settings, before any data is read.
        CiodError: data that cannot be used, or an ``out`` with runs of other settings. A failed run raises no error; it
            is reported in ``runs``.
    """
    words = {"methods": methods, "seeds": seeds, "jobs": jobs, "upper": upper, "against": against, "out": out,
             "cache": cache}  # fmt: skip
    words = {k: v for k, v in words.items() if v is not None}
    every = {**words, **settings}
    shown = ", ".join([*([repr(str(scenario))] if scenario else []), *(f"{k}={v!r}" for k, v in every.items())])
    return run(scenario, settings=settings, command=f"ciod.compare({shown})", **words)


def run(
    scenario: str | Path | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    command: str = "",
    problems: Sequence[str] = (),
    quiet: bool = False,
    dry: bool = False,
    **given: Any,
) -> dict[str, Any]:
    """Like ``compare``, with the settings of the runs as a mapping; called by ``ciod compare``.

    Args:
        given: the arguments of the comparison itself.
        problems: known problems, which are reported together with the others.
        dry: only print what would be trained; returns nothing.
    """
    import shlex
    import sys

    from rich.console import Console

    from ciod.comparison import outcome, plan, schedule
    from ciod.comparison import settings as words

    scenario, own, settings = words.opened(scenario, given, settings or {})
    own, more = words.own_settings(own)
    problems = [*problems, *more]
    jobs = own.pop("jobs", 1)
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        problems = [*problems, f"jobs: {jobs!r} must be a number from 1."]
    command = command or shlex.join(["ciod", *sys.argv[1:]])
    made = plan.build(scenario, settings=settings, command=command, problems=problems, **own)
    console = Console(highlight=False, quiet=quiet)

    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    for line in outcome.announcement(made):
        say(line)
    if dry:
        for line in outcome.listing(made):
            say(line)
        return {}
    failed = schedule.run(made.cells, jobs=jobs, logs=made.out / "logs", say=say)
    content = outcome.write(made, failed)
    outcome.show(made, content, console)
    return content

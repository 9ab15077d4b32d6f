"""Compares methods on one scenario: plans the runs, trains them in worker processes, and reports the results.

``plan`` lists the runs, ``schedule`` trains them, ``outcome`` writes the tables and the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from ciod.comparison.plan import Cell, Plan
    from ciod.comparison.schedule import Say
    from ciod.core.results_schema import ComparisonFile

__all__ = ["FAILED", "compare", "run"]

FAILED = "failed"
WRITING = ".compare.lock"


def compare(
    scenario: str | Path | None = None,
    *,
    methods: str | Sequence[str | Mapping[str, Any]] | None = None,
    seeds: int | Sequence[int] | None = None,
    blocks: int | Sequence[Mapping[str, Any]] | None = None,
    equal_steps: bool | None = None,
    gate: float | None = None,
    margin: float | None = None,
    only: str | None = None,
    jobs: int | None = None,
    on: str | None = None,
    upper: str | None = None,
    against: str | None = None,
    out: str | Path | None = None,
    cache: str | Path | None = None,
    **settings: Any,
) -> ComparisonFile:
    """Trains every method with every seed, or resumes this, and returns the content of ``compare.json``.

    The first task is the same for all methods of a seed and is trained once.

    Args:
        scenario: a name of ``ciod list scenarios``, or a YAML file of settings, which may hold ``methods``, ``seeds``
            and the other arguments below, too (those given here take precedence); None with ``data=`` and ``split=``.
        methods: names, ``"finetune,ilyolox"`` or a list; a mapping of name, settings and (if wanted) label for a
            method with settings: ``["finetune", {"name": "ilyolox", "nms_iou": 0.65}]``. ``joint`` is the upper bound.
        seeds: 3 for 0, 1, 2; or a list. None: 1.
        blocks: repetitions that differ in fold, class order and seed; 10: seeds and class orders 0 to 9, and with
            ``folds=5`` each fold twice; or a list of mappings: ``[{"fold": 1, "order": "seed:7", "seed": 7}]``.
        equal_steps: joint training takes as many optimiser steps as all tasks together; rows with others are refused.
        gate: ratios are withheld if a first task is below this share of joint training's AP50 on its classes; None:
            0.9.
        margin: two methods count as equal if their difference is within it; None: 0.02, two points.
        only: ``"1/2"`` trains the first of two parts of the runs, writes no page and returns only the failed runs; the
            call without it merges.
        jobs: number of parallel runs; they share cores and GPUs. None: as many as there are GPUs, or 1.
        on: ``ray`` trains them on a Ray cluster, as many at a time as it has room for, or ``jobs``.
        upper: joint models to train for Ω and the gaps: of all class ``prefixes``, the ``final`` one, ``none``;
            None: ``final`` for two tasks (Ω needs no other there), ``prefixes`` for more.
        against: label of the reference method, which is subtracted from the others per seed; None: the first.
        out: folder for runs, tables and page; None: ``runs/compare-SCENARIO``.
        cache: folder for first tasks and joint models, to share them between comparisons; None: ``out``.
        settings: those of every run, as in ``ciod.train``.

    Raises:
        ConfigError: every problem of the settings, before any data is read.
        CiodError: data that cannot be used, or an ``out`` with runs of other settings. A failed run raises no error; it
            is reported in ``runs``.
    """
    from ciod.report.notebook import Compared

    words = {"methods": methods, "seeds": seeds, "blocks": blocks, "equal_steps": equal_steps, "gate": gate,
             "margin": margin, "only": only, "jobs": jobs, "on": on, "upper": upper, "against": against, "out": out,
             "cache": cache}  # fmt: skip
    words = {k: v for k, v in words.items() if v is not None}
    every = {**words, **settings}
    shown = ", ".join([*([repr(str(scenario))] if scenario else []), *(f"{k}={v!r}" for k, v in every.items())])
    content = run(scenario, settings=settings, command=f"ciod.compare({shown})", **words)
    return cast("ComparisonFile", Compared(content, content.pop("out")))


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
        dry: only print what would be trained; the runs that are returned have a name, a folder and a state.

    Returns:
        As ``compare``, with ``out``.
    """
    import shlex
    import sys

    from ciod.comparison import outcome, plan, schedule
    from ciod.comparison import settings as words
    from ciod.core import terminal
    from ciod.core.errors import ConfigError
    from ciod.runs import lock

    scenario, own, settings = words.opened(scenario, given, settings or {})
    own, more = words.own_settings(own)
    problems = [*problems, *more]
    jobs, on, more = words.where_of(own)
    problems, part = [*problems, *more], None
    try:
        part = words.part_of(own.pop("only", None))
    except ConfigError as e:
        problems = [*problems, *e.problems]
    command = command or shlex.join(["ciod", *sys.argv[1:]])
    made = plan.build(scenario, settings=settings, command=command, problems=problems, **own)
    console = terminal.console(quiet=quiet)

    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    for line in [*outcome.announcement(made), *(outcome.listing(made, part) if dry else ())]:
        say(line)
    if dry:
        return {"out": str(made.out), "runs": outcome.planned(made, part)}
    cells = schedule.part(made.cells, *part) if part else made.cells
    failed = _trained(made, cells, jobs, on, say)
    if part:
        for line in outcome.of_part(made, part, failed):
            say(line)
        return {"out": str(made.out), "runs": outcome.failures(failed)}
    with lock.turn_in(made.out, WRITING):  # the same command in another process writes the same files
        content = outcome.write(made, failed)
    outcome.show(made, content, console)
    return {**content, "out": str(made.out)}


def _trained(made: Plan, cells: Sequence[Cell], jobs: int | None, on: str | None, say: Say) -> dict[str, str]:
    """Trains the runs here or on a cluster; returns those that failed."""
    from ciod.comparison import gpus, schedule

    logs = made.out / "logs"
    if on == "ray":
        from ciod.comparison import on_ray

        with on_ray.starter(jobs, made.device == "cuda", say) as start:
            return schedule.run(cells, jobs=jobs or len(cells) or 1, logs=logs, say=say, start=start)
    each = gpus.for_runs(made.settings.device, made.device)
    jobs = jobs or len(each) or 1
    if each:
        say(gpus.sentence(each, jobs))
    return schedule.run(cells, jobs=jobs, logs=logs, say=say, gpus=each)

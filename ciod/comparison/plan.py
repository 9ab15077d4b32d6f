"""The plan of a comparison: every run it needs, with its settings, its folder and its key."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from ciod import methods
from ciod.comparison import given, identity, steps
from ciod.comparison.blocks import Block, blocks_of
from ciod.comparison.blocks import warnings as blocks_warnings
from ciod.comparison.settings import Entry, Rules, Upper, entries, rules_of, seeds_of
from ciod.comparison.worker import mark
from ciod.config import load as config
from ciod.config.load import Run
from ciod.core.distributed import World, pick_device
from ciod.core.errors import CiodError, ConfigError, did_you_mean
from ciod.core.files import is_file
from ciod.core.plural import counted
from ciod.core.user_code import user_errors
from ciod.data.index import Index
from ciod.data.scenarios import subsets
from ciod.data.scenarios.scenario import Scenario
from ciod.methods.base import first_task
from ciod.runs import choices
from ciod.training.effort import Start

Value = TypeVar("Value")


@dataclass
class Cell:
    """One run. ``kind``: ``first`` task for others to start from, ``joint`` training of a class prefix, or ``run``."""

    kind: Literal["first", "joint", "run"]
    name: str
    label: str
    seed: int
    folder: Path
    settings: Run
    facts: dict[str, Any]
    command: str
    starts_from: str | None = None
    until: int | None = None
    tasks: int = 0
    """joint: it is trained on the classes of this number of tasks."""

    def __post_init__(self) -> None:
        self.key = identity.key(self.facts)

    @property
    def started(self) -> bool:
        return is_file(self.folder / "last" / "state.pt")

    @property
    def needs(self) -> tuple[str, ...]:
        """Cells that must be finished before this one can start."""
        return (self.starts_from,) if self.starts_from and not self.started else ()

    def job(self) -> dict[str, Any]:
        """The worker's job, JSON-ready."""
        return {
            "name": self.name,
            "folder": str(self.folder),
            "key": self.key,
            "facts": self.facts,
            "settings": self.settings.model_dump(mode="json"),
            "until": self.until,
            "command": self.command,
        }


@dataclass
class Plan:
    """A comparison before it runs."""

    out: Path
    entries: list[Entry]
    blocks: list[Block]
    scenarios: dict[int, Scenario]
    """Seed of a block → its tasks."""
    settings: Run
    upper: Upper
    against: str
    """Label of the method with which the others are compared in each block."""
    rules: Rules
    cells: list[Cell]
    command: str
    warnings: list[str]
    why: list[str]
    """What ``effort`` chose for the runs."""
    device: str = "cpu"
    """``cpu`` or ``cuda``: where the runs are trained."""

    @property
    def seeds(self) -> list[int]:
        return [b.seed for b in self.blocks]

    @property
    def scenario(self) -> Scenario:
        """That of the first block."""
        return self.scenarios[self.blocks[0].seed]

    def of(self, entry: Entry, seed: int) -> Cell | None:
        """The run of a table row."""
        found = [c for c in self.cells if c.seed == seed and c.label == entry.label and c.kind != "first"]
        return found[-1] if found else None

    def bounds(self, seed: int) -> list[Cell]:
        return [c for c in self.cells if c.kind == "joint" and c.seed == seed]


def build(
    scenario: str | Path | None = None,
    *,
    methods: str | Sequence[str | Mapping[str, Any]] = (),
    seeds: int | Sequence[int] | str | None = None,
    blocks: Any = None,
    upper: str | None = None,
    against: str | None = None,
    equal_steps: bool = False,
    gate: float = Rules.gate,
    margin: float = Rules.margin,
    out: str | Path | None = None,
    cache: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    command: str = "",
    problems: Sequence[str] = (),
) -> Plan:
    """Reads settings and data and lists the runs, without training.

    Args:
        scenario: name of a scenario of the package, or a YAML file: of settings, or a scenario.
        blocks: see ``blocks.blocks_of``; None: one per seed.
        out: folder of the comparison; None: ``runs/compare-SCENARIO``.
        cache: folder of first tasks and joint models; None: ``out``.
        settings: those of every run, as in ``ciod train``.
        problems: known problems, which are reported together with the others.

    Raises:
        ConfigError: every problem of the settings, before any data is read.
        CiodError: data that cannot be used, or an ``out`` with runs of other settings.
    """
    base, more = given.base_of(scenario, settings or {})
    problems = [*problems, *more]
    rows = given.kept_settings(scenario, _collect(problems, lambda: entries(methods)) or [])
    base, more = given.with_recipes(base, settings or {}, rows)
    problems += more
    repeated = _collect(problems, lambda: _blocks(seeds, blocks, base)) or [Block(0)]
    rules, wrong = rules_of(equal_steps, gate, margin)
    wrong += steps.excluded(base) if rules.equal_steps else []
    problems += [*wrong, *given.wrong_words(upper, out, cache, against)]
    against = None if against is None else str(against)
    folder = Path(str(out)) if out else Path("runs") / f"compare-{_slug(str(base.get('scenario') or 'data'))}"
    labels = [e.label for e in rows if e.name != "joint"]  # an upper bound does not start from a first task
    if against is not None and labels and against not in labels:
        problems.append(f"against: none of the methods is '{against}'; {did_you_mean(against, labels)}")
    first = repeated[0]
    loaded = [given.load({**base, **first.settings, **given.of_method(e)}, folder, first.seed, problems) for e in rows]
    loaded = loaded or [given.load({**base, **first.settings}, folder, 0, problems)]
    for block in repeated[1:]:
        given.load({**base, **block.settings}, folder, block.seed, problems)
    if problems:
        raise ConfigError(dict.fromkeys(problems))
    if (run := next((r for r, e in zip(loaded, rows) if r and e.name != "joint"), None)) is None:
        raise ConfigError(["methods: there is nothing to compare but joint training; add a method."])
    against = against or labels[0]
    store = Path(str(cache)) if cache else folder
    return _Builder(base, rows, repeated, run, upper, against, rules, folder, store, command).plan()


def _collect(problems: list[str], read: Callable[[], Value]) -> Value | None:
    """Returns what ``read`` returns, or None and adds its problems to the others."""
    try:
        return read()
    except ConfigError as e:
        problems += e.problems
        return None


def _blocks(seeds: Any, blocks: Any, base: Mapping[str, Any]) -> list[Block]:
    """Raises ConfigError: one is invalid, or both are given."""
    if blocks is None:
        return [Block(s) for s in seeds_of(1 if seeds is None else seeds)]
    if seeds is not None:
        raise ConfigError(["seeds: every block has its own seed; leave seeds= or blocks= out."])
    return blocks_of(blocks, base)


@dataclass
class _Material:
    """The material of the runs of a block."""

    pair: tuple[Index, Index]
    scenario: Scenario
    groups: list[list[str]]
    data: dict[str, str]
    """Split → fingerprint."""


@dataclass
class _Builder:
    """Turns validated settings into cells."""

    base: dict[str, Any]
    entries: list[Entry]
    blocks: list[Block]
    run: Run
    upper: str | None
    against: str
    rules: Rules
    out: Path
    cache: Path
    command: str
    starts: dict[tuple[str, ...], Start] = field(default_factory=dict)
    """Classes of a first task → the parts that are pretrained when its runs start."""
    why: list[str] = field(default_factory=list)
    materials: dict[str, _Material] = field(default_factory=dict)
    scenarios: dict[str, Scenario] = field(default_factory=dict)
    """Scenario per protocol: that of a joint run differs."""

    def plan(self) -> Plan:
        if self.run.protocol.joint:
            raise ConfigError(["joint: write methods=joint,… for the upper bound; the scenario itself has its tasks."])
        self.device = pick_device(self.run.device).type
        self.warnings = blocks_warnings(self.blocks, self.run.protocol.folds)
        if subset := self.run.protocol.subset:
            self.warnings.append(subsets.sentence(subset))
        self.tasks = len(self._material(self.blocks[0]).groups)
        self.alone = self._alone()
        upper = self._upper()
        cells = [c for block in self.blocks for c in self._of_block(block, upper)]
        for cell in cells:
            self._check(cell)
        return Plan(
            self.out, self.entries, self.blocks, {b.seed: self._material(b).scenario for b in self.blocks}, self.run,
            upper, self.against, self.rules, cells, self.command, self.warnings, self.why, self.device,
        )  # fmt: skip

    def _material(self, block: Block) -> _Material:
        from ciod.runs.start import open_data

        run = config.load(None, {**self.base, **block.settings, "seed": block.seed, "out": str(self.out)})
        key = run.protocol.model_dump_json() + (f" {block.seed}" if run.eval.holdout else "")
        if key not in self.materials:
            pair = {}
            for place in dict.fromkeys((self.out, self.cache)):  # the built-in scenes are drawn next to the runs
                pair = dict(zip(("train", "test"), open_data(run.model_copy(update={"out": str(place / "run")}))))
            scenario = Scenario(run.protocol, pair["train"], pair["test"])
            data = {k: identity.fingerprint(v) for k, v in pair.items()}
            groups = [list(g) for g in scenario.taught]
            self.materials[key] = _Material((pair["train"], pair["test"]), scenario, groups, data)
        return self.materials[key]

    def _upper(self) -> Upper:
        """With two tasks, the first is its own joint training, so Ω needs only the final model."""
        if self.tasks < 2:
            return "none"
        if self._material(self.blocks[0]).scenario.repeats:
            if self.upper == "prefixes":
                raise ConfigError(["upper: prefixes differ in their classes, which repeat here; write final or none."])
            return "none" if self.upper == "none" else "final"
        if self.upper in ("prefixes", "final"):
            return self.upper
        if self.upper == "none":
            return "final" if any(e.name == "joint" for e in self.entries) else "none"
        return "final" if self.tasks == 2 else "prefixes"

    def _of_block(self, block: Block, upper: Upper) -> list[Cell]:
        rows = [e for e in self.entries if e.name != "joint"]
        shared = self.tasks > 1 and any(e.label not in self.alone for e in rows)
        first = self._first(block) if shared else None
        runs = [self._run(block, e, None if e.label in self.alone else first) for e in rows]
        each = {c.label: (c.settings, steps.of_tasks(c.settings, self._material(block).scenario)) for c in runs}
        if self.rules.equal_steps:
            steps.check(each)
        taken = next(iter(each.values()))[1]
        joint: list[Cell] = []
        if upper != "none":
            prefixes = range(2, self.tasks + 1) if upper == "prefixes" else [self.tasks]
            joint = [self._joint(block, k, taken[:k]) for k in prefixes]
        return [*([first] if first else []), *joint, *runs]

    def _alone(self) -> dict[str, str]:
        """Label of each method that needs a first task of its own → why."""
        found: dict[str, str] = {}
        for e in (e for e in self.entries if e.name != "joint" and self.tasks > 1):
            with user_errors(e.name):
                run = config.load(None, {**self.base, **self.blocks[0].settings, **given.of_method(e)})
                reason = first_task.why(methods.make(run.method))
            if reason:
                found[e.label] = reason
                self.warnings.append(f"{e.label}: its first task is not shared with the other methods: {reason}.")
        return found

    def _settings(self, block: Block, folder: Path, **more: Any) -> Run:
        flat = {**self.base, **block.settings, "seed": block.seed, "out": str(folder), **more}
        return self._complete(config.load(None, flat), folder, block)

    def _complete(self, run: Run, folder: Path, block: Block) -> Run:
        """Adds what ``effort`` chooses; a run folder of a version without choices keeps its defaults."""
        theirs = mark(folder).get("facts")
        if theirs:
            run = choices.with_values(run, choices.defaults_in(theirs["settings"], choices.open_keys(run)))
        if not choices.open_keys(run):
            return run
        classes = (scenario := self._scenario(run, block)).task(0).taught_classes
        start = self.starts[classes] = self.starts.get(classes) or choices.start_of(run, classes)
        run, lines = choices.complete(run, scenario, World(device=pick_device(run.device)), start)
        self.why = self.why or lines
        return run

    def _scenario(self, run: Run, block: Block) -> Scenario:
        key = run.protocol.model_dump_json() + (f" {block.seed}" if run.eval.holdout else "")
        self.scenarios[key] = self.scenarios.get(key) or Scenario(run.protocol, *self._material(block).pair)
        return self.scenarios[key]

    def _facts(self, run: Run, block: Block, tasks: int | None = None, first: bool = False) -> dict[str, Any]:
        material = self._material(block)
        return identity.facts(run, material.groups[:tasks], material.data, device=self.device, first=first)

    def _first(self, block: Block) -> Cell:
        """Without old classes all methods train in the same way, so the simplest one is used."""
        base = {k: v for k, v in self.base.items() if k.split(".")[0] not in given.BESIDE}
        flat = {**base, **block.settings, "method.name": "finetune", "seed": block.seed, "out": str(self.cache)}
        run = self._complete(config.load(None, flat), self.cache, block)
        facts = self._facts(run, block, first=True)
        folder = self.cache / f"first-{identity.key(facts)}"
        run = run.model_copy(update={"out": str(folder)})
        name = f"first-seed{block.seed}"
        return Cell("first", name, "first task", block.seed, folder, run, facts, self.command, until=1)

    def _joint(self, block: Block, tasks: int, taken: Sequence[int]) -> Cell:
        """``taken``: the steps of the other runs in each of its tasks."""
        entry = next((e for e in self.entries if e.name == "joint"), Entry("joint", "joint"))
        more = given.of_method(entry)
        if tasks < self.tasks:
            more["protocol.split"] = self._material(block).groups[:tasks]
            more |= {"protocol.images": lists[:tasks]} if (lists := self.run.protocol.lists) else {}
        run = self._settings(block, self.cache, **more)
        if self.rules.equal_steps:
            more["train.joint_epochs"] = steps.joint_epochs(taken, run, self._scenario(run, block))
            run = self._settings(block, self.cache, **more)
        facts = self._facts(run, block, tasks)
        folder = self.cache / f"joint-{identity.key(facts)}"
        run = run.model_copy(update={"out": str(folder)})
        final = tasks == self.tasks
        name, label = (
            (entry.label, entry.label) if final else (f"joint-{tasks}-tasks", f"joint, {counted(tasks, 'task')}")
        )
        name = f"{_slug(name)}-seed{block.seed}"
        return Cell("joint", name, label, block.seed, folder, run, facts, self.command, tasks=tasks)

    def _run(self, block: Block, entry: Entry, first: Cell | None) -> Cell:
        same = [e for e in self.entries if _slug(e.label) == _slug(entry.label)]
        number = f"-{same.index(entry) + 1}" if same.index(entry) else ""
        name = f"{_slug(entry.label)}{number}-seed{block.seed}"
        folder = self.out / name
        run = self._settings(block, folder, **given.of_method(entry))
        if first:
            run = run.model_copy(update={"first": str(first.folder)})
        starts = first.name if first else None
        facts = self._facts(run, block)
        return Cell("run", name, entry.label, block.seed, folder, run, facts, self.command, starts_from=starts)

    def _check(self, cell: Cell) -> None:
        """Refuses a folder with a run of other settings; warns about a run of another version of the code."""
        from ciod.runs import environment

        theirs = mark(cell.folder).get("facts")
        if not theirs or theirs == cell.facts:
            return
        old, new = (_settings_of(f) for f in (theirs, cell.facts))
        if differ := environment.differences(new, old):
            raise CiodError(f"out: {cell.folder} holds a run with other settings ({differ}). Choose another out=.")
        origin = ", ".join(f"{k} {theirs[k]}" for k in ("ciod", "torch", "device") if theirs[k] != cell.facts[k])
        self.warnings.append(f"{cell.name} was started with different code or on a different device ({origin}).")
        cell.facts = theirs
        cell.key = identity.key(theirs)


def _settings_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {**facts["settings"], **{k: facts[k] for k in ("groups", "data", "files")}}


def _slug(label: str) -> str:
    """A label as part of a file name."""
    return re.sub(r"[^a-z0-9._+]+", "-", label.lower()).strip("-.") or "run"


def pairs(plan: Plan) -> Iterable[tuple[Entry, int, Cell]]:
    """The runs of every row: entry, seed, cell."""
    for e in plan.entries:
        for seed in plan.seeds:
            cell = plan.of(e, seed)
            if cell is not None:
                yield e, seed, cell

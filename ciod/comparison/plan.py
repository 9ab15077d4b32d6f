"""The plan of a comparison: every run it needs, with its settings, its folder and its key."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ciod import methods
from ciod.comparison import identity
from ciod.comparison.settings import OWN, TABLE, Entry, Upper, entries, seeds_of, written
from ciod.comparison.worker import mark
from ciod.config import load as config
from ciod.config.checks import model_folder, target
from ciod.config.load import Run
from ciod.core.distributed import World, pick_device
from ciod.core.errors import CiodError, ConfigError, did_you_mean
from ciod.core.files import is_file
from ciod.core.reading import Unreadable, read_yaml
from ciod.data.scenarios.scenario import Scenario
from ciod.methods.base import first_task
from ciod.methods.base.user_code import told
from ciod.runs import choices
from ciod.training.effort import Start

# Sections of settings that a single row can have, too: additional images, from the second task on.
_BESIDE = ("memory", "pool")


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
    """joint: number of tasks whose classes it is trained on."""

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
        """The job of the worker, JSON-ready."""
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
    seeds: list[int]
    scenario: Scenario
    settings: Run
    upper: Upper
    against: str
    """Label of the method with which the others are compared per seed."""
    cells: list[Cell]
    command: str
    warnings: list[str]
    why: list[str]
    """What ``effort`` chose for the runs."""

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
    seeds: int | Sequence[int] | str = 1,
    upper: str | None = None,
    against: str | None = None,
    out: str | Path | None = None,
    cache: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    command: str = "",
    problems: Sequence[str] = (),
) -> Plan:
    """Reads settings and data and lists the runs, without training.

    Args:
        scenario: name of a scenario of the package, or a YAML file: of settings, or a scenario.
        out: folder of the comparison; None: ``runs/compare-SCENARIO``.
        cache: folder of first tasks and joint models; None: ``out``.
        settings: of every run, as in ``ciod train``.
        problems: known problems, which are reported together with the others.

    Raises:
        ConfigError: every problem of the settings, before any data is read.
        CiodError: data that cannot be used, or an ``out`` with runs of other settings.
    """
    base, more = _base(scenario, settings or {})
    problems = [*problems, *more]
    rows, numbers = [], [0]
    try:
        rows = entries(methods)
    except ConfigError as e:
        problems += e.problems
    try:
        numbers = seeds_of(seeds)
    except ConfigError as e:
        problems += e.problems
    if upper not in (None, "prefixes", "final", "none"):
        problems.append(f"upper: '{upper}' is not allowed; allowed: prefixes, final, none")
    for key, value in (("out", out), ("cache", cache), ("against", against)):
        if value is not None and not isinstance(value, (str, int, Path)):
            problems.append(f"{key}: {value!r} is not a name.")
    problems += [*target("out", out), *model_folder("cache", cache)]  # ``out`` is a setting of every run
    against = None if against is None else str(against)
    folder = Path(str(out)) if out else Path("runs") / f"compare-{_slug(str(base.get('scenario') or 'data'))}"
    labels = [e.label for e in rows if e.name != "joint"]  # an upper bound does not start from a first task
    if against is not None and labels and against not in labels:
        problems.append(f"against: none of the methods is '{against}'; {did_you_mean(against, labels)}")
    loaded = [_load({**base, **_method(e)}, folder, numbers[0], problems) for e in rows] or [
        _load(base, folder, 0, problems)
    ]
    if problems:
        raise ConfigError(dict.fromkeys(problems))
    run = next((r for r, e in zip(loaded, rows) if r and e.name != "joint"), None)
    if run is None:
        raise ConfigError(["methods: there is nothing to compare but joint training; add a method."])
    against = against or labels[0]
    store = Path(str(cache)) if cache else folder
    return _Builder(base, rows, numbers, run, upper, against, folder, store, command).plan()


def _base(scenario: str | Path | None, settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Settings of every run by full key, without those that the comparison sets itself."""
    from ciod.data.scenarios import scenario as scenarios

    path, given = None, dict(settings)
    if scenario is not None:
        name = str(scenario)
        if name in scenarios.available() or _is_protocol(Path(name)):
            given = {"scenario": name, **given}
        elif name.endswith((".yaml", ".yml")):
            path = Path(name)
        else:
            return {}, [f"compare: there is no scenario '{name}'; {did_you_mean(name, scenarios.available())}"]
    own, problems = config.gather(None, given, TABLE)
    for k, why in OWN.items():
        if k in own:
            problems.append(f"{k.removesuffix('.name')}: not a setting of a comparison; {why}.")
    for k in own:
        if k.startswith("method.") and k not in OWN:
            leaf = k.removeprefix("method.")
            example = f"[{{name: ilyolox, {leaf}: {written(own[k])}}}, …]"
            problems.append(f"{k}: this setting belongs to a method. Write methods='{example}'.")
    merged, more = config.gather(path, given, TABLE)
    kept = {k: v for k, v in merged.items() if k not in (*OWN, "out") and not k.startswith("method.")}
    return kept, [*problems, *(p for p in more if p not in problems)]


def _is_protocol(path: Path) -> bool:
    """Whether a file is a scenario: it holds only switches of the protocol."""
    from ciod.data.scenarios.protocol import Protocol

    if path.suffix not in (".yaml", ".yml") or not is_file(path):
        return False
    try:
        content = read_yaml(path)
    except Unreadable:
        return False
    return (
        isinstance(content, dict)
        and bool({"description", "name"} & set(content))
        and set(content) <= set(Protocol.model_fields)
    )


def _method(entry: Entry) -> dict[str, Any]:
    """An entry's settings by full key."""
    beside = {k: v for k, v in entry.settings.items() if k.split(".")[0] in _BESIDE}
    own = {f"method.{k}": v for k, v in entry.settings.items() if k not in beside}
    return {"method.name": entry.name, **own, **config.by_full_key(beside)}


def _load(flat: dict[str, Any], out: Path, seed: int, problems: list[str]) -> Run | None:
    try:
        return config.load(None, {**flat, "seed": seed, "out": str(out)})
    except ConfigError as e:
        problems += e.problems
        return None


@dataclass
class _Builder:
    """Turns validated settings into cells."""

    base: dict[str, Any]
    entries: list[Entry]
    seeds: list[int]
    run: Run
    upper: str | None
    against: str
    out: Path
    cache: Path
    command: str
    start: Start | None = None
    """What is trained already when the runs begin; None: not asked yet."""
    why: list[str] = field(default_factory=list)
    scenarios: dict[str, Scenario] = field(default_factory=dict)
    """By protocol: a joint run has another one."""

    def plan(self) -> Plan:
        from ciod.runs.start import open_data

        pair = {}
        for place in dict.fromkeys((self.out, self.cache)):  # the built-in scenes are drawn next to the runs
            pair = dict(zip(("train", "test"), open_data(self.run.model_copy(update={"out": str(place / "run")}))))
        self.pair = pair["train"], pair["test"]
        self.scenario = Scenario(self.run.protocol, pair["train"], pair["test"])
        if self.run.protocol.joint:
            raise ConfigError(["joint: write methods=joint,… for the upper bound; the scenario itself has its tasks."])
        self.groups = [list(g) for g in self.scenario.groups]
        self.data = {k: identity.fingerprint(v) for k, v in pair.items()}
        self.device = pick_device(self.run.device).type
        self.warnings: list[str] = []
        self.alone = self._alone()
        upper = self._upper()
        cells = [c for seed in self.seeds for c in self._of_seed(seed, upper)]
        for cell in cells:
            self._check(cell)
        return Plan(
            self.out, self.entries, self.seeds, self.scenario, self.run, upper, self.against, cells, self.command,
            self.warnings, self.why,
        )  # fmt: skip

    def _upper(self) -> Upper:
        """With two tasks, the first is its own joint training, so Ω needs only the final model."""
        if len(self.groups) < 2:
            return "none"
        if self.upper in ("prefixes", "final"):
            return self.upper
        if self.upper == "none":
            return "final" if any(e.name == "joint" for e in self.entries) else "none"
        return "final" if len(self.groups) == 2 else "prefixes"

    def _of_seed(self, seed: int, upper: Upper) -> list[Cell]:
        rows = [e for e in self.entries if e.name != "joint"]
        shared = len(self.groups) > 1 and any(e.label not in self.alone for e in rows)
        first = self._first(seed) if shared else None
        cells = [first] if first else []
        if upper != "none":
            last = len(self.groups)
            cells += [self._joint(seed, k) for k in (range(2, last + 1) if upper == "prefixes" else [last])]
        for e in rows:
            cells.append(self._run(seed, e, None if e.label in self.alone else first))
        return cells

    def _alone(self) -> dict[str, str]:
        """Label of each method that needs a first task of its own → why."""
        found: dict[str, str] = {}
        for e in (e for e in self.entries if e.name != "joint" and len(self.groups) > 1):
            with told(e.name):
                reason = first_task.why(methods.make(self._settings(0, self.out, **_method(e)).method))
            if reason:
                found[e.label] = reason
                self.warnings.append(f"{e.label}: its first task is not shared with the other methods: {reason}.")
        return found

    def _settings(self, seed: int, folder: Path, **more: Any) -> Run:
        return self._complete(config.load(None, {**self.base, "seed": seed, "out": str(folder), **more}), folder)

    def _complete(self, run: Run, folder: Path) -> Run:
        """With what ``effort`` chooses; a folder of a version that chose nothing keeps the defaults of that version."""
        theirs = mark(folder).get("facts")
        if theirs:
            run = choices.with_values(run, choices.defaults_in(theirs["settings"], choices.open_keys(run)))
        if not choices.open_keys(run):
            return run
        self.start = self.start or choices.start_of(run)
        key = run.protocol.model_dump_json()
        self.scenarios[key] = scenario = self.scenarios.get(key) or Scenario(run.protocol, *self.pair)
        run, lines = choices.complete(run, scenario, World(device=pick_device(run.device)), self.start)
        self.why = self.why or lines
        return run

    def _first(self, seed: int) -> Cell:
        """Without old classes every method trains in the same way, so the simplest one is used for all."""
        base = {k: v for k, v in self.base.items() if k.split(".")[0] not in _BESIDE}
        run = config.load(None, {**base, "method.name": "finetune", "seed": seed, "out": str(self.cache)})
        run = self._complete(run, self.cache)
        facts = identity.facts(run, self.groups, self.data, device=self.device, first=True)
        folder = self.cache / f"first-{identity.key(facts)}"
        run = run.model_copy(update={"out": str(folder)})
        return Cell("first", f"first-seed{seed}", "first task", seed, folder, run, facts, self.command, until=1)

    def _joint(self, seed: int, tasks: int) -> Cell:
        entry = next((e for e in self.entries if e.name == "joint"), Entry("joint", "joint"))
        more = _method(entry)
        if tasks < len(self.groups):
            more["protocol.split"] = self.groups[:tasks]
        run = self._settings(seed, self.cache, **more)
        facts = identity.facts(run, self.groups[:tasks], self.data, device=self.device, first=False)
        folder = self.cache / f"joint-{identity.key(facts)}"
        run = run.model_copy(update={"out": str(folder)})
        final = tasks == len(self.groups)
        name, label = (entry.label, entry.label) if final else (f"joint-{tasks}-tasks", f"joint, {tasks} tasks")
        return Cell("joint", f"{_slug(name)}-seed{seed}", label, seed, folder, run, facts, self.command, tasks=tasks)

    def _run(self, seed: int, entry: Entry, first: Cell | None) -> Cell:
        same = [e for e in self.entries if _slug(e.label) == _slug(entry.label)]
        name = _slug(entry.label) + (f"-{same.index(entry) + 1}" if same.index(entry) else "") + f"-seed{seed}"
        folder = self.out / name
        run = self._settings(seed, folder, **_method(entry))
        if first:
            run = run.model_copy(update={"first": str(first.folder)})
        facts = identity.facts(run, self.groups, self.data, device=self.device, first=False)
        starts = first.name if first else None
        return Cell("run", name, entry.label, seed, folder, run, facts, self.command, starts_from=starts)

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

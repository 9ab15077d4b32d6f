"""Blocks: what repetitions of a comparison differ in. All methods of a block share fold, class order and seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ciod.core import typed, yaml_text
from ciod.core.errors import ConfigError, did_you_mean
from ciod.core.limits import LARGEST_SEED
from ciod.core.yaml_text import without_sources

MOST = 1000  # a larger number is a typing error
_KEYS = ("fold", "order", "seed")


@dataclass(frozen=True)
class Block:
    """One repetition, in which the methods are compared pair by pair; its seed is its name."""

    seed: int
    settings: dict[str, Any] = field(default_factory=dict)
    """Fold and class order, by full key; empty if they are the same in all repetitions."""

    def content(self) -> dict[str, Any]:
        """The entry in compare.json."""
        return {"seed": self.seed, **{k.removeprefix("protocol."): v for k, v in self.settings.items()}}

    def words(self) -> str:
        """``seed 3, fold 4, order seed:3``."""
        given = [f"{k.removeprefix('protocol.')} {_written(v)}" for k, v in self.settings.items()]
        return ", ".join([f"seed {self.seed}", *given])


def _written(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def blocks_of(given: Any, base: Mapping[str, Any]) -> list[Block]:
    """``10`` or a list of mappings with fold, order and seed → blocks.

    With a number, block b has seed b, class order ``seed:b`` (unless the split names the classes of each task) and, if
    the data is cut into folds, fold b % folds + 1: consecutive blocks test all folds.

    Args:
        base: settings of every run, by full key.

    Raises:
        ConfigError: every problem in one message.
    """
    if isinstance(given, str):
        try:
            given = yaml_text.parse_sourced(given)
        except yaml_text.NotYAML:
            raise ConfigError([f"blocks: '{given}' {typed.QUOTE}"]) from None
    given = without_sources(given)
    if isinstance(given, list) and given:
        return _listed(given, base)
    if isinstance(given, bool) or not isinstance(given, int) or not 1 <= given <= MOST:
        raise ConfigError(
            [
                f"blocks: {given!r} must be a number from 1 to {MOST:,}, or a list such as "
                "[{fold: 1, order: 'seed:7', seed: 7}, …]."
            ]
        )
    folds, named = base.get("protocol.folds"), isinstance(base.get("protocol.split"), list)
    own = {"order": not named, "fold": folds is not None}
    problems = [
        f"{k}: blocks={given} gives every block its own {k}; leave {k}= out, or list the blocks."
        for k, sets in own.items()
        if sets and base.get(f"protocol.{k}") is not None
    ]
    if problems:
        raise ConfigError(problems)
    return [
        Block(
            b,
            {
                **({"protocol.fold": b % int(folds) + 1} if folds is not None else {}),
                **({} if named else {"protocol.order": f"seed:{b}"}),
            },
        )
        for b in range(given)
    ]


def _listed(given: list[Any], base: Mapping[str, Any]) -> list[Block]:
    problems, found = [], []
    for n, one in enumerate(given, 1):
        if not isinstance(one, Mapping):
            problems.append(f"blocks: the entry {n} ({one!r}) is not a mapping such as {{fold: 1, seed: 7}}.")
            continue
        problems += [
            f"blocks: the entry {n} has no setting '{k}'; {did_you_mean(str(k), _KEYS)}" for k in one if k not in _KEYS
        ]
        seed = one.get("seed")
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= LARGEST_SEED:
            problems.append(f"blocks: the entry {n} needs a seed, a number from 0; it is also the name of the block.")
            continue
        if "order" in one and isinstance(base.get("protocol.split"), list):
            problems.append(f"blocks: the entry {n} has an order, but split= already names the classes of each task.")
        problems += [
            f"{k}: the blocks have their own {k}; leave {k}= out."
            for k in ("fold", "order")
            if k in one and base.get(f"protocol.{k}") is not None
        ]
        found.append(Block(seed, {f"protocol.{k}": one[k] for k in ("fold", "order") if k in one}))
    seeds = [b.seed for b in found]
    problems += [
        f"blocks: two blocks have seed {s}; a block is named by its seed, so each needs its own."
        for s in sorted({s for s in seeds if seeds.count(s) > 1})
    ]
    if problems:
        raise ConfigError(dict.fromkeys(problems))
    return found


def warnings(blocks: list[Block], folds: int | None) -> list[str]:
    """Warnings about an uneven choice of blocks."""
    if folds is None:
        return []
    times = [sum(b.settings.get("protocol.fold") == k for b in blocks) for k in range(1, folds + 1)]
    if len(blocks) == sum(times) and len({*times}) > 1:
        counts = ", ".join(f"fold {k}: {n}" for k, n in enumerate(times, 1))
        return [
            f"The blocks do not test all folds equally often ({counts}); a multiple of {folds} blocks tests every "
            "image equally often."
        ]
    return []

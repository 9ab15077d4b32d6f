"""Which class is which: a model's classes and a folder's meet by name. What is only similar is asked about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ciod.core.errors import ConfigError
from ciod.core.files import nfc
from ciod.core.plural import counted, few
from ciod.core.text_lists import alike, near_name, word, written_list, written_mapping
from ciod.data.text_files import same_names

if TYPE_CHECKING:
    from ciod.extension.settings import Extend


@dataclass(frozen=True)
class Names:
    """What extending does with the classes of a model and of a folder."""

    kept: tuple[str, ...]  # the model's classes that stay, under their names in the model as it was
    old: tuple[str, ...]  # the same under the names they will have
    new: tuple[str, ...]  # classes of the folder that the model lacks, in the folder's order
    taught: tuple[str, ...]  # classes of the folder that the model knows: they are taught further
    data: dict[str, str]  # folder's name → name in the model
    dropped: tuple[str, ...] = ()
    parent: str | None = None
    """The old class that the new ones are kinds of."""
    ignored: tuple[str, ...] = ()
    """Known classes of the folder that are neither the parent nor its kinds: their boxes teach nothing."""

    @property
    def all(self) -> tuple[str, ...]:
        """Every class of the extended model, in the order of arrival."""
        return self.old + self.new

    @property
    def learnt(self) -> tuple[str, ...]:
        """The classes that the folder teaches, in the order of arrival."""
        return tuple(n for n in self.old if n in self.taught) + self.new

    def sentences(self) -> list[str]:
        """The plan in words."""
        lines = []
        if self.dropped:
            lines.append(f"dropped from the model: {few(self.dropped)}")
        renamed = [f"{a} → {b}" for a, b in zip(self.kept, self.old, strict=True) if a != b]
        renamed += [f"{a} → {b} (in the folder)" for a, b in self.data.items() if a != b and a not in self.kept]
        if renamed:
            lines.append(f"renamed: {few(renamed)}")
        lines.append(f"known and kept: {counted(len(self.old), 'class')}")
        if self.parent is not None:
            lines.append(
                f"{self.parent} becomes {few(self.new)}; what is clearly none of them stays {self.parent} alone"
            )
        else:
            lines.append(f"new: {few(self.new)}" if self.new else "new: none")
        if self.ignored:
            lines.append(f"not used, as only kinds of {self.parent} are taught: boxes of {few(self.ignored)}")
        if self.taught:
            lines.append(f"known, taught further: {few(self.taught)}")
        return lines


def of_settings(s: Extend, model: Sequence[str], folder: Sequence[str]) -> Names:
    """See ``match``."""
    return match(model, folder, keep=s.keep, drop=s.drop, rename=s.rename, new=s.new, split=s.split)


def match(
    model: Sequence[str],
    folder: Sequence[str],
    *,
    keep: Sequence[str] | None = None,
    drop: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    new: Sequence[str] = (),
    split: Mapping[str, Sequence[str]] | None = None,
) -> Names:
    """Matches the classes of a model with those of a folder.

    Args:
        model, folder: class names; those of the folder that have a box.
        keep: only these of the model's classes stay; None: all.
        drop: these of the model's classes go.
        rename: name → name, of either side; applied before anything is compared.
        new: names of the folder that are new although the model has a similar one.
        split: one class of the model → the classes of the folder that are kinds of it.

    Raises:
        ConfigError: every problem at once: unknown names, two classes under one name, and every name of the folder
            that differs from one of the model's in case, spacing or plural only, with both ways to answer.
    """
    model, drop, new = same_names(model), [nfc(n) for n in drop], [nfc(n) for n in new]
    keep = None if keep is None else [nfc(n) for n in keep]
    rename = {nfc(a): nfc(b) for a, b in (rename or {}).items()}
    problems = _unknown(model, folder, keep, drop, rename, new)
    new = _commas_of_names([*new], folder)
    staying = [n for n in model if (keep is None or n in keep) and n not in drop]
    old = [rename.get(n, n) for n in staying]
    problems += [f"rename: two classes of the model would be called '{n}'." for n in sorted({*old}) if old.count(n) > 1]
    data = {n: rename.get(n, n) for n in folder}
    arriving = list(dict.fromkeys(n for n in data.values() if n not in old))
    similar = {}
    for name in arriving:
        same = [o for o in old if alike(o, name)]
        sources = [a for a, b in data.items() if b == name]
        if same and not {name, *sources} & set(new):
            similar[sources[0]] = same[0]
    if similar:
        problems.append(_question(similar, rename, new))
    if model and not old and not problems:
        problems.append("keep and drop leave none of the model's classes; then there is nothing to extend.")
    parent, kinds = _split(split, old, arriving, data, problems)
    if problems:
        raise ConfigError(problems)
    return Names(
        kept=tuple(staying),
        old=tuple(old),
        new=tuple(n for n in arriving if parent is None or n in kinds),
        taught=tuple(n for n in dict.fromkeys(data.values()) if n in old and parent is None),
        data=data,
        dropped=tuple(n for n in model if n not in staying),
        parent=parent,
        ignored=tuple(n for n in dict.fromkeys(data.values()) if n in old and n != parent) if parent else (),
    )


def _split(
    split: Mapping[str, Sequence[str]] | None,
    old: Sequence[str],
    arriving: Sequence[str],
    data: Mapping[str, str],
    problems: list[str],
) -> tuple[str | None, list[str]]:
    """The parent and its kinds; what is wrong is added to ``problems``."""
    if not split:
        return None, []
    if len(split) > 1:
        problems.append(f"split: one class at a time; give {few([*split])} each a command of its own.")
        return None, []
    ((parent, listed),) = ((nfc(k), [nfc(n) for n in v]) for k, v in split.items())
    if parent not in old:
        problems.append(f"split: the model has no class '{parent}'; {near_name('split', parent, old)}")
    if not listed:
        problems.append(f"split: '{parent}' becomes nothing; list the classes of the folder that are kinds of it.")
    for name in listed:
        if name in old:
            problems.append(f"split: '{name}' is a class of the model already; a kind of '{parent}' is a new class.")
        elif name not in data.values():
            problems.append(f"split: the folder has no class '{name}'; {near_name('split', name, [*data.values()])}")
    more = [n for n in arriving if n not in listed]
    if more and listed:
        rename = word("rename", written_mapping(dict.fromkeys(more[:1], parent)))
        problems.append(
            f"split: the folder also has {few(more)}, which the model does not know. List what is a kind of "
            f"'{parent}'; a '{parent}' of no kind gets that name ({rename}); other new classes need a folder and a "
            "command of their own."
        )
    return parent, listed


def _question(similar: Mapping[str, str], rename: Mapping[str, str], new: Sequence[str]) -> str:
    """Asks about names of the folder (keys) that are nearly the model's (values), with both answers to paste."""
    same = word("rename", written_mapping({**rename, **similar}))
    other = word("new", written_list([*new, *similar]))
    if len(similar) == 1:
        ((a, b),) = similar.items()
        return (
            f"The folder has the class '{a}' and the model '{b}': is it the same? "
            f"Say so with {same}, or {other} if it is another class."
        )
    shown = ", ".join(f"'{a}' and '{b}'" for a, b in similar.items())
    return (
        f"Classes of the folder and of the model have nearly the same names: {shown}. If they are the same, write "
        f"{same}; if they are other classes, {other}; or divide them among the two."
    )


def _unknown(
    model: Sequence[str],
    folder: Sequence[str],
    keep: Sequence[str] | None,
    drop: Sequence[str],
    rename: Mapping[str, str],
    new: Sequence[str],
) -> list[str]:
    problems = []
    for key, listed, known, whose in (
        ("keep", keep or (), model, "model"),
        ("drop", drop, model, "model"),
        ("rename", rename, (*folder, *model), "model and the folder"),
        ("new", new, folder, "folder"),
    ):
        whole = _commas_of_names([*listed], known)
        if whole != [*listed] and key != "rename":
            problems.append(f"{key}: a comma of a name stands in quotes; write {word(key, written_list(whole))}.")
            continue
        for name in listed:
            if name not in known:
                verb = "have" if " and " in whose else "has"
                problems.append(f"{key}: the {whose} {verb} no class '{name}'; {near_name(key, str(name), known)}")
    both = sorted({*(keep or ())} & {*drop})
    if both:
        problems.append(f"keep and drop both name {', '.join(both)}.")
    return problems


def _commas_of_names(listed: list[str], known: Sequence[str]) -> list[str]:
    """``listed`` with neighbours joined that together are one known name: Hot Dog, Bun."""
    for name in known:
        for i in range(len(listed)):
            end = i + name.count(", ") + 1
            if i + 1 < end <= len(listed) and ", ".join(listed[i:end]) == name:
                return _commas_of_names([*listed[:i], name, *listed[end:]], known)
    return listed

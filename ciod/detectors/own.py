"""Detectors in a file of the user: ``FILE.py:Class``, or ``FILE.py:Class:VARIANT``.

The file is code, so it is run only where the user names it. A model file holds the names of file, class and variant and
a digest of the file, never its place: it is read after the user named the file in the same process.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ciod.core.errors import CiodError, did_you_mean
from ciod.core.user_code import UserCodeError, class_of, is_users, split, user_errors, where
from ciod.detectors.base import Detector
from ciod.detectors.returned import guard

DIGEST = "file_sha256"
"""The entry of a detector's settings with the digest of its file."""
_TRAITS = (
    "dense",
    "objectness",
    "centerness",
    "box_distribution",
    "features",
    "branches",
    "query",
    "first_stage",
    "rois",
)
_PARTS = ("forward", "match", "losses", "trunk")
_STORED = re.compile(r"[^/\\:]+\.py:[^/\\:]+(:[^/\\:]+)?")

named: dict[tuple[str, str], str] = {}
"""(file without its folder, class) → the file as the user named it last in this process."""
_read: dict[tuple[Path, str, str], type[Detector]] = {}
"""(file, its digest, class) → the class, so that it is the same one each time."""


def parts(name: str) -> tuple[str, str, str]:
    """``folder/mine.py:Mine:small`` → file, class, variant; "" for what is not named."""
    file, rest = split(name)
    cls, _, variant = rest.partition(":")
    return file, cls, variant


def find(name: str) -> type[Detector]:
    """The class, which is the same one until the file changes. Runs the file, and permits models of it.

    Raises:
        UserCodeError: the file cannot be imported, or the class is not a detector that ciod can use.
        CiodError: no such file, class or variant.
    """
    file, cls, variant = parts(name)
    path = Path(file)
    key = (path.resolve(), digest(file), cls) if path.is_file() else None
    found = _read.get(key) if key else None
    if found is None:
        found = class_of(file, cls, Detector, kind="detector")
        _check(found)
        guard(found)
    if key:
        _read[key] = found
    variant_of(found, variant, name)
    named[path.name, cls] = file
    return found


def variant_of(cls: type[Detector], asked: str, name: str) -> str:
    """What the constructor gets as ``name``: the variant asked for, else the first, else the name of the class.

    Raises:
        CiodError: there is no such variant.
    """
    if asked and asked not in cls.variants:
        raise CiodError(
            f"detector: {name}: there is no variant '{asked}'; {did_you_mean(asked, cls.variants)}"
            if cls.variants
            else f"detector: {name}: {cls.__name__} has no variants; write {name.removesuffix(f':{asked}')}."
        )
    return asked or next(iter(cls.variants), cls.__name__)


def names(name: str) -> list[str]:
    """The name with each variant of the class."""
    file, cls, variant = parts(name)
    found = find(name)
    return [f"{file}:{cls}:{v}" for v in found.variants if variant in ("", v)] or [f"{file}:{cls}"]


def build(class_names: Sequence[str], *, name: str, **settings: Any) -> Detector:
    """A detector with random weights, whose settings say where its class came from.

    Raises:
        UserCodeError: the file raises an error, or gives something else than a detector.
    """
    settings.pop(DIGEST, None)
    file, cls, asked = parts(name)
    family = find(name)
    variant = variant_of(family, asked, name)
    with user_errors(f"{file}:{cls}", "detector"):
        made: Any = family
        detector = made(class_names, name=variant, **settings)
    if not isinstance(getattr(detector, "settings", None), dict):
        raise UserCodeError(
            f"{where(family, '__init__')} does not call super().__init__(class_names, settings, input_spec)."
        )
    for key, value in detector.settings.items():
        if not _plain(value) and not (isinstance(value, (list, tuple)) and all(map(_plain, value))):
            raise UserCodeError(
                f"{where(family, '__init__')} gives super().__init__ the setting {key!r}: {value!r}, which a model "
                "file cannot hold; give text, numbers, and lists of them."
            )
    name = f"{Path(file).name}:{cls}" + (f":{variant}" if family.variants else "")
    detector.settings = {**detector.settings, "name": name, DIGEST: digest(file)}
    return detector


def _plain(value: object) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def digest(file: str) -> str:
    """16 hex digits of the SHA-256 of a file."""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]


def stored(name: object) -> bool:
    """Whether it is what ``build`` writes into the settings: names without a folder."""
    return isinstance(name, str) and _STORED.fullmatch(name) is not None


def permitted(settings: Mapping[str, Any], asked: str | None, source: object) -> str:
    """The name, with its file's place, of the detector that a model file describes.

    Args:
        settings: of the detector, as the model file has them.
        asked: the detector as the user named it with the model; None: as anywhere in this process.
        source: the model file, for messages.

    Raises:
        CiodError: the user did not name that file and class: a model file alone runs no code.
    """
    file, cls, variant = parts(str(settings["name"]))
    if asked is not None:
        find(asked)
        place, mine, _ = parts(asked)
        if mine != cls:
            raise CiodError(f"detector: {source} holds a detector of {file}:{cls}, not of {asked}.")
    elif (file, cls) in named:
        place = named[file, cls]
    else:
        raise CiodError(
            f"{source} holds a detector of {file}:{cls}. That is code, which a model file does not contain and may not "
            f"start; if you trust the file, name it: detector=PATH/{file}:{cls}"
        )
    if settings.get(DIGEST) not in (None, digest(place)):
        warnings.warn(
            f"{place} has changed since {source} was saved, so its detector may find other things than before.",
            stacklevel=2,
        )
    return f"{place}:{cls}" + (f":{variant}" if variant else "")


def problems(asked: object) -> list[str]:
    """What is wrong with the detector that a user names with a model."""
    if asked is None:
        return []
    if not isinstance(asked, str) or not split(asked)[0]:
        return [f"detector: {asked} is not a file; a model says itself which detector of ciod it is. Leave it out."]
    try:
        find(asked)
    except CiodError as e:
        return [str(e)]
    return []


@contextmanager
def faults(name: str | None) -> Iterator[None]:
    """Around what uses a detector of the user: permits its models, and reports errors of its file as the user's.
    Nothing for None and for detectors of ciod.

    Raises:
        UserCodeError: see ``user_errors``.
    """
    if name and split(name)[0]:
        find(name)
    with user_errors(name or "", "detector"):
        yield


def _check(cls: type[Detector]) -> None:
    """Raises UserCodeError if ciod cannot use a class."""
    if lacking := [n for n in _PARTS if n in cls.__abstractmethods__] or sorted(cls.__abstractmethods__):
        raise UserCodeError(f"{where(cls)} lacks {', '.join(lacking)} (docs/adding-a-detector.md).")
    if not isinstance(cls.traits, (frozenset, set)):
        raise UserCodeError(f'{where(cls)}: traits = {cls.traits!r}; write for example frozenset({{"dense"}}).')
    inherited = {t for c in cls.__mro__ if not is_users(c) for t in getattr(c, "traits", ())}
    if unknown := sorted(map(str, set(cls.traits) - set(_TRAITS) - inherited)):
        raise UserCodeError(f"{where(cls)}: there is no trait '{unknown[0]}'; {did_you_mean(unknown[0], _TRAITS)}")
    if not isinstance(cls.variants, Mapping) or not all(stored(f"a.py:A:{v}") for v in cls.variants):
        raise UserCodeError(
            f'{where(cls)}: variants = {cls.variants!r}; write names without ":", "/" and "\\" and what each of them '
            'means: {"small": 0.25}.'
        )
    try:
        inspect.signature(cls).bind((), name="", size=64, backbone_weights=None)
    except TypeError as e:
        raise UserCodeError(
            f"{where(cls, '__init__')} must take (self, class_names, *, name, size=None, backbone_weights=None): {e}."
        ) from None

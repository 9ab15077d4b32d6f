"""What "did you mean" proposes is accepted where the wrong word was refused: it never leads to a second refusal."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import torch

import ciod
from ciod import api, detectors, listing, methods
from ciod.comparison import given
from ciod.comparison.blocks import blocks_of
from ciod.config import checks
from ciod.config.load import load, recipes
from ciod.core.errors import CiodError
from ciod.core.text_lists import read_names
from ciod.data import download, formats
from ciod.data.scenarios import lists, scenario
from ciod.detectors.files import weights
from ciod.detectors.inference import mask_of
from ciod.detectors.onnx import pictures as onnx_pictures
from ciod.detectors.query import hf
from ciod.extension import names as extension_names
from ciod.extension import settings as extending
from ciod.inference import images
from ciod.inference.quick import quick
from ciod.memory import pools
from tests.data.writers import sample_index, write_coco

PROPOSED = re.compile(r"[Dd]id you mean '(.+?)'\?(?: In \w+= it is written (?P<written>.+)\.)?")
CLASSES = ("cat", "hot dog, bun", "007", "Null", "o'clock", "a [b]", "e: f", "café")
ROOT = Path(ciod.__file__).parent


def misspelt(word: str) -> Iterator[str]:
    """A letter too many, one missing, two swapped, another case."""
    yield from (f"{word}x", word[:-1], word[1:], word[:1] + word[2:3] + word[1:2] + word[3:], word.swapcase())


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with one of everything that is proposed, beside things of like names that would not do."""
    root = tmp_path_factory.mktemp("suggestions")
    write_coco(sample_index(root / "raw"), root / "sub" / "pets")
    for name in ("petsy", "rawy", "petz"):
        (root / "sub" / name).mkdir()  # empty
    (root / "sub" / "pet").write_text("no data set")
    torch.manual_seed(0)
    weights.save_model(root / "sub" / "state.safetensors", detectors.build(CLASSES, name="yolox-pico", size=64))
    (root / "sub" / "state.pt").write_bytes(b"a saved state of a run")
    (root / "sub" / "state.txt").write_text("")
    return root


Check = Callable[[Path, str], object]
SITES: dict[str, tuple[Check, Callable[[Path], Iterable[str]]]] = {
    "setting of train": (lambda _, w: load_one(w), lambda _: ("epochs=1", "seed=0", "flip=0.5", "train.batch=2")),
    "method": (lambda _, w: methods.find(w), lambda _: methods.available()),
    "extend method": (lambda _, w: ok(extending._method({"name": w})), lambda _: ("auto", *methods.available()[::5])),
    "detector": (lambda _, w: detectors.traits(w), lambda _: detectors.available()),
    "detector of train": (lambda _, w: load_one(f"detector={w}"),
                          lambda _: some(n for n in detectors.available() if not detectors.lacking(n))),
    "scenario": (lambda _, w: scenario.read_protocol(w), lambda _: some(scenario.available())),
    "scenario of compare": (lambda _, w: ok(given.base_of(w, {"data": "shapes"})[1]), lambda _: some(recipes())),
    "block": (lambda _, w: blocks_of([{w: 1, "seed": 1}], {}), lambda _: ("fold", "order")),
    "metric": (lambda _, w: api._evaluation(w, 0.1, 0.5, 10, None), lambda _: ("coco", "voc", "voc07")),
    "download": (lambda _, w: download.run(w, None, mirror=None, keep=False, say=print), lambda _: ("coco", "voc")),
    "list": (lambda p, w: listing.show(*topic(p, w), {}), lambda _: (*listing.TOPICS,)),
    "classes": (lambda _, w: mask_of(CLASSES, read_names(w)), lambda _: CLASSES),
    "order": (lambda _, w: ordered(w), lambda _: CLASSES),
    "keep": (lambda _, w: extension_names.match(CLASSES, ("eel",), keep=read_names(w)), lambda _: CLASSES),
    "drop": (lambda _, w: extension_names.match(CLASSES, ("eel",), drop=read_names(w) or ()), lambda _: CLASSES),
    "engine": (lambda _, w: quick(detectors.build(["a"], name="yolox-pico", size=64), w), lambda _: ("torch", "auto")),
    "input": (lambda _, w: onnx_pictures.parse(f"0..1,{w}"), lambda _: ("rgb", "bgr")),
    "data set": (lambda _, w: formats.recognise(Path(w)), lambda p: (str(p / "sub" / "pets"),)),
    "data=": (lambda _, w: ok(checks.folder_of_data(w)), lambda p: (str(p / "sub" / "pets"),)),
    "pool=": (lambda _, w: ok(checks.folder("pool", w)), lambda p: (str(p / "raw"), str(p / "sub"))),
    "pool": (lambda _, w: pools.read(w), lambda p: (str(p / "raw"),)),
    "pictures": (lambda _, w: images.files(Path(w)), lambda p: (str(p / "sub" / "pets"), str(p / "raw/000001.png"))),
    "model": (lambda _, w: weights.load(w), lambda p: (str(p / "sub" / "state.safetensors"),)),
    "weights=": (lambda _, w: ok(checks.files({"detector": {"weights": w}})),
                 lambda p: (str(p / "sub" / "state.safetensors"),)),
    "images=": (lambda _, w: ok(lists.problems([w], 1)), lambda p: (str(p / "sub" / "state.safetensors"),)),
    "hf": (lambda _, w: hf.folder_of(f"hf:{w}"), lambda p: (str(p / "sub" / "pets"),)),
    "model to list": (lambda _, w: listing.show(w, [], {}), lambda p: (str(p / "sub" / "state.safetensors"),)),
}  # fmt: skip


def some(words: Iterable[str]) -> list[str]:
    return [*words][::5]


def ok(problems: list[str]) -> None:
    if problems:
        raise CiodError("; ".join(problems))


def load_one(word: str) -> None:
    load(None, ["data=shapes", "split=6+4", "method=finetune", word])


def ordered(word: str) -> None:
    from ciod.config.settings import Protocol

    given = read_names(word) or []
    scenario.groups_of(Protocol(split=[len(given)], order=[*map(str, given)]), CLASSES)


def topic(place: Path, word: str) -> tuple[str, list[str]]:
    """``data PATH`` is typed with a path."""
    name, _, path = word.partition(" ")
    return name, [str(place / "sub" / "pets")] if path else []


@pytest.mark.parametrize("site", SITES)
def test_what_is_proposed_is_accepted(place, site, capsys):
    check, right = SITES[site]
    proposals = set()
    for word in right(place):
        head, slash, tail = word.rpartition("/")
        for wrong in misspelt(word.partition("=")[0] if "=" in word else tail):
            value = f"={word.partition('=')[2]}" if "=" in word else ""
            try:
                check(place, f"{head}{slash}{wrong}{value}")
            except CiodError as error:
                if found := PROPOSED.search(str(error)):
                    proposed = found["written"] or found[1]
                    proposals.add(proposed + value)
    assert proposals, "else the test shows nothing"
    for proposed in proposals:
        check(place, proposed)  # must not be refused


PROPOSERS = ("did_you_mean", "near_path", "near_name", "no_model_file", "nearest")


def test_every_site_is_looked_at():
    """Whoever adds a proposal adds it above, or says here why its list is what the check itself takes."""
    found = set()
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in PROPOSERS:
                found.add(path.relative_to(ROOT).as_posix())
    assert found == {
        "api.py", "comparison/blocks.py", "comparison/given.py", "comparison/plan.py",
        "config/checks.py", "config/load.py", "config/reader.py", "core/errors.py",
        "core/files.py", "core/text_lists.py", "core/types.py", "core/validation_messages.py",
        "data/download.py", "data/formats/__init__.py", "data/scenarios/lists.py", "data/scenarios/scenario.py",
        "detectors/__init__.py", "detectors/files/weights.py", "detectors/inference.py", "detectors/mmdet/config.py",
        "detectors/query/hf.py",
        "detectors/onnx/file.py", "detectors/onnx/pictures.py", "detectors/onnx/recognise.py", "detectors/onnx/taps.py",
        "extension/known.py", "extension/names.py", "extension/settings.py", "inference/images.py",
        "listing/__init__.py", "listing/model_files.py", "memory/pools.py", "methods/__init__.py",
        "core/user_code.py", "inference/quick.py",
        "detectors/own.py",
    }  # fmt: skip

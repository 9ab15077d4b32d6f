"""YAML from anyone: words stay words, and what cannot be a value is NotYAML, whatever Python says of it."""

from __future__ import annotations

import pytest
import yaml

from ciod.core.yaml_text import NotYAML, parse


def test_classes_may_be_called_no():
    assert parse("[no, yes, on, off, y, tree, false]") == ["no", "yes", "on", "off", "y", "tree", False]
    assert parse("a: True\nb: 3\nc: 0.5\nd: ~") == {"a": True, "b": 3, "c": 0.5, "d": None}
    assert parse("") is None and parse(b"a: \xc3\xa9") == {"a": "é"}
    assert yaml.safe_load("no") is False, "PyYAML's own loader is left alone"


def test_aliases_are_for_use():
    assert parse("a: &x {k: 1}\nb: {<<: *x, l: 2}\nc: *x") == {"a": {"k": 1}, "b": {"k": 1, "l": 2}, "c": {"k": 1}}


LAUGHS = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi"))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("&a {b: *a}", "contains itself"),
        ("&a [[*a]]", "contains itself"),
        (LAUGHS, "more than 1,000,000 values"),
        (r'a: ["b\0"]', "not text"),
        (r'"\ud800": b', "not text"),
        ("a: 2001-13-45", "cannot be read: month must be in"),
        ("!!int ''", "cannot be read"),
        ("!!bool maybe", "cannot be read"),
        ("!!timestamp x", "cannot be read"),
        ("[" * 5000, "recursion"),
        ("!!python/object:os.system a", "could not determine a constructor"),
        ("? [a]\n: b", "unhashable"),
        ("a: [1", "while parsing"),
    ],
)
def test_what_cannot_be_a_value(text, match):
    with pytest.raises(NotYAML, match=match):
        parse(text)


def test_a_class_called_no_in_every_place(tmp_path):
    """A YOLO data set, a split, words of a command."""
    from ciod.config.commands import PREDICT, read
    from ciod.config.load import gather
    from ciod.data import formats
    from ciod.data.shapes.scenes import write_shapes

    assert gather(None, ["split=[[no], [on, off]]"]) == ({"protocol.split": [["no"], ["on", "off"]]}, [])
    assert read(PREDICT, ["classes=[no, yes]"])[1]["classes"] == ["no", "yes"]
    assert [read(PREDICT, [f"draw={w}"])[1]["draw"] for w in ("no", "off", "false", "yes", "on")] == [
        False, False, False, True, True,
    ]  # fmt: skip
    (tmp_path / "labels").mkdir()
    (tmp_path / "images").mkdir()
    source = write_shapes(tmp_path / "shapes", train=1, val=1, size=64)
    for picture in (source / "images").iterdir():
        (tmp_path / "images" / picture.name).write_bytes(picture.read_bytes())
        (tmp_path / "labels" / f"{picture.stem}.txt").write_text("0 0.5 0.5 0.2 0.2\n1 0.2 0.2 0.1 0.1\n")
    (tmp_path / "data.yaml").write_text("train: images\nval: images\nnames: [no, yes]\n")
    assert formats.read(tmp_path, "train").class_names == ("no", "yes")

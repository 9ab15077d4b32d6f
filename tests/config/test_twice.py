"""One setting with two values: neither is chosen in silence."""

from __future__ import annotations

import pytest

from ciod.config import commands, load
from ciod.config.reader import split
from ciod.core.errors import ConfigError, DataError
from ciod.core.yaml_text import NotYAML, parse
from ciod.data import formats
from ciod.extension import settings as extending
from tests.config.test_text import TABLES

TWICE = r"it is given twice, as '1' and as '2'; write it once"


@pytest.mark.parametrize("name", TABLES)
def test_every_setting_of_every_command_is_given_once(name):
    table = TABLES[name]
    for key in [*table.keys()]:
        assert split([f"{key}=1", f"{key}=1"], table)[2] == []
        for words in ([f"{key}=1", f"{key}=2"], [f"{table.full(key)}=1", f"{key}=2"]):
            assert split(words, table)[2] == [f"{key}: it is given twice, as '1' and as '2'; write it once."]


def test_a_command_refuses_it():
    with pytest.raises(ConfigError, match=f"data: {TWICE}"):
        commands.read(commands.EVAL, ["data=1", "data=2"])
    with pytest.raises(ConfigError, match=f"train.lr: {TWICE}"):
        load.load(None, {"lr": 1, "train.lr": 2})
    with pytest.raises(ConfigError, match=f"train.epochs: {TWICE}"):
        extending.load({"train": {"epochs": 1}, "train.epochs": 2, "model": "m"})
    with pytest.raises(ConfigError, match=f"train.lr: {TWICE}"):
        load.by_full_key({"lr": 1, "train": {"lr": 2}})


@pytest.mark.parametrize(
    ("text", "line"),
    [("a: 1\nb: 2\na: 3\n", 3), ("names:\n  0: cat\n  0: dog\n", 3), ("a: {x: 1, x: 2}\n", 1), ("a: [1]\na: [1]\n", 2)],
)
def test_a_key_twice_in_a_file(tmp_path, text, line):
    with pytest.raises(NotYAML, match=rf"the key '\w+' is given twice, the second time in line {line}\."):
        parse(text)
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"s\.yaml.*is given twice, the second time in line {line}\."):
        load.load(tmp_path / "s.yaml")


def test_a_key_twice_with_one_value_is_read():
    assert parse("a: 1\nb: 2\na: 1\n") == {"a": 1, "b": 2}


def test_a_class_number_twice_in_a_yolo_data_set(tmp_path):
    (tmp_path / "data.yaml").write_text("train: images\nnames:\n  0: cat\n  0: dog\n")
    with pytest.raises(DataError, match="the key '0' is given twice"):
        formats.recognise(tmp_path)

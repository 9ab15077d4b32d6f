"""A word on the command line is what was typed: every setting that is a path or a name, with odd names."""

from __future__ import annotations

import random
import shlex
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from ciod.comparison import settings as comparing
from ciod.config import commands, load, reader
from ciod.config.reader import Table, split
from ciod.core import text_lists, typed
from ciod.core.errors import ConfigError
from ciod.core.yaml_text import parse_sourced
from ciod.extension import settings as extending
from ciod.extension.names import match
from tests.data.writers import sample_index, write_coco

NAMES = [
    "pets #2", "#1", "a: b", "a:b", "010", "007", "1_000", "1e3", "0x1f", "1.0", "12:30", "null", "~", "on", "off",
    "no", "true", "2001-01-01", "-x", "--dry-run", "- a", "*a", "&a", "!a", "%a", "@a", "`a`", "?", "|", ">", "a=b",
    "it's",
    '"a"', "'a'", "${x", "a\\b", " a ", "hot dog", "café", unicodedata.normalize("NFD", "café"), "猫", "😀", "a\u2028b",
    "[a", "{a", "a]", ".nan", "=",
]  # fmt: skip
# In a list these need quotes.
LISTED = [*NAMES, "hot dog, bun", "[a]", "{a}", "{a: b}", "a: b, c", "", "[", "]", "'", '"', "\\", "[[a]]", ", "]
TABLES = {
    "train": load.TABLE, "compare": comparing.TABLE, "extend": extending.TABLE, "eval": commands.EVAL,
    "predict": commands.PREDICT, "export": commands.EXPORT, "export mmdet": commands.EXPORTS["mmdet"],
    "check": commands.CHECK, "demo": commands.DEMO, "data": commands.DOWNLOAD,
}  # fmt: skip


def of_kind(table: Table, wanted: str) -> list[str]:
    """Settings of a command that take free text, a list of names, or a mapping of names, as they may be written."""
    found = []
    for key in [*table.keys(), *table.refused]:
        kind = table.annotation(table.full(key))
        if kind is reader.RAW:
            continue
        parts = typed._kind(kind)
        free = typed.is_free_text(kind)
        takes = {"text": free, "list": bool(parts.items) and not free, "mapping": bool(parts.pairs)}
        found += [key] if takes[wanted] else []
    return found


def read(table: Table, word: str) -> Any:
    """What one word gives."""
    plain, given, problems = split([word], table)
    flat, more = table.settings(given)
    assert plain == [] and problems == [] and more == [], (word, problems, more)
    ((value),) = flat.values()
    return value


@pytest.mark.parametrize("command", TABLES)
def test_text_is_what_was_typed(command):
    """In a word, as it is; in a YAML file, in quotes."""
    table = TABLES[command]
    keys = of_kind(table, "text")
    one = {"compare": "cache", "train": "weights", "extend": "old_data", "eval": "data", "predict": "coco",
           "export": "onnx", "export mmdet": "mmdet", "check": "taps", "demo": "out", "data": "mirror"}  # fmt: skip
    assert one[command] in keys
    for name in NAMES:
        _, given, problems = split([f"{key}={name}" for key in keys], table)
        words, more = table.settings(given)
        assert problems == more == [] and len(words) >= len(set(map(table.full, keys)))
        assert {k: v for k, v in words.items() if v != name or type(v) is not str} == {}
        file, problems = table.settings(parse_sourced("\n".join(f"{key}: {text_lists.quoted(name)}" for key in keys)))
        assert problems == [] and file == words, name


@pytest.mark.parametrize("command", TABLES)
def test_names_in_a_list_are_text(command):
    table = TABLES[command]
    for key in [*of_kind(table, "list"), *(["order", "upper_bound"] if command == "train" else [])]:
        if "Literal" in str(table.annotation(table.full(key))):
            continue
        for name in LISTED:
            names = ["cat", name, "007"]
            assert read(table, f"{key}={text_lists.written_list(names)}") == names, (key, name)
        assert read(table, f"{key}=[007, 1.0, null, ~, on, pets #2, *a]") == [
            "007", "1.0", "null", "~", "on", "pets #2", "*a"
        ]  # fmt: skip


def test_words_without_brackets_are_a_list():
    assert read(commands.PREDICT, "classes=007,hot dog") == ["007", "hot dog"]
    assert read(commands.PREDICT, 'classes="hot dog, bun",cat') == ["hot dog, bun", "cat"]
    assert read(extending.TABLE, "drop=cat") == ["cat"] and read(extending.TABLE, "keep=") is None


def test_a_split_of_names_and_of_numbers():
    assert read(load.TABLE, 'split=[[007, 1.0], [null, "hot dog, bun"]]') == [["007", "1.0"], ["null", "hot dog, bun"]]
    assert read(load.TABLE, "split=[3, 3]") == [3, 3] and read(load.TABLE, "split=6") == "6"
    flat, _ = load.TABLE.settings(parse_sourced("split: [[007, 1.0], [~, on]]\norder: [010]"))
    assert flat == {"protocol.split": [["007", "1.0"], ["~", "on"]], "protocol.order": ["010"]}


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("{a: b}", {"a": "b"}),
        ("{a:b}", {"a": "b"}),
        ("{Null: null, 1_000: on}", {"Null": "null", "1_000": "on"}),
        ("{Hot Dog, Bun: hot dog, bun}", {"Hot Dog, Bun": "hot dog, bun"}),
        ('{"Hot Dog, Bun": "hot dog, bun", a: b}', {"Hot Dog, Bun": "hot dog, bun", "a": "b"}),
        ("{'it''s': its}", {"it's": "its"}),
        ("{pets #2: pets}", {"pets #2": "pets"}),
    ],
)
def test_a_mapping_of_names(text, pairs):
    assert read(extending.TABLE, f"rename={text}") == pairs


@pytest.mark.parametrize("text", ["{a}", "{a: b, c}", "a", "{a: }", "[a]", "{a: b"])
def test_a_value_that_is_not_a_mapping_of_names(text):
    _, problems = extending.TABLE.settings(split([f"rename={text}"], extending.TABLE)[1])
    assert len(problems) == 1 and "is not a mapping of names such as {old name: " in problems[0]


def test_brackets_that_do_not_match(tmp_path: Path):
    _, problems = extending.TABLE.settings(split(["drop=[a"], extending.TABLE)[1])
    assert problems == ["drop: '[a' cannot be read; quote it or check its brackets."]
    with pytest.raises(ConfigError, match=r"^methods: '\[a' cannot be read; quote it or check its brackets\.$"):
        comparing.entries("[a")
    mine = tmp_path / "mine.py"
    mine.write_text("from ciod.methods.base.method import Method\n\nclass Mine(Method):\n    files: list[str] = []\n")
    with pytest.raises(ConfigError, match=r"^methods: files: '\[a' cannot be read"):
        comparing.entries([{"name": f"{mine}:Mine", "files": "[a"}])


def test_any_names_are_read_as_they_were_written():
    """Words to paste into a shell, and the same in a YAML file."""
    draw = random.Random(0)
    letters = [
        *"abcAB 01._-+,:;#'\"[]{}&*!|>%@`~?\\/=()<\n\t\r\x7f\u0301é\xa0\u2028\u200b\ufeff😀猫$",
        "null",
        "on",
        ": ",
    ]
    for _ in range(300):
        names = ["".join(draw.choices(letters, k=draw.randint(1, 6))) for _ in range(draw.randint(1, 4))]
        (word,) = shlex.split(text_lists.word("drop", text_lists.written_list(names)))
        assert read(extending.TABLE, word) == names
        assert typed.fit(parse_sourced(text_lists.written_list(names)), list[str]) == names
        pairs = dict(zip(names, names[::-1], strict=True))
        (word,) = shlex.split(text_lists.word("rename", text_lists.written_mapping(pairs)))
        assert read(extending.TABLE, word) == pairs
        assert typed.fit(parse_sourced(text_lists.written_mapping(pairs)), dict[str, str]) == pairs


@pytest.mark.parametrize(
    "folder", [["Null", "Hot Dog, Bun", "owl"], ["Chairs"], ["It's: X"], ["NULL", "1_000s"], ["'A'", "[b]"]]
)
def test_suggestions_of_extend_are_accepted_unchanged(folder):
    model = ("null", "hot dog, bun", "chair", "it's: x", "1_000", "a", "b")
    with pytest.raises(ConfigError) as caught:
        match(model, folder)
    for key in ("rename", "new"):
        proposed = str(caught.value)[str(caught.value).index(f"{key}=") :]
        word = shlex.split(proposed.partition(", or new=")[0].partition("; ")[0].partition(" if it")[0])[0]
        found = match(model, folder, **{key: read(extending.TABLE, word)})
        assert bool(found.taught) == (key == "rename")


def test_a_comma_of_a_name_that_was_taken_for_one_of_the_list():
    with pytest.raises(
        ConfigError, match=r"""new: a comma of a name stands in quotes; write new='\["Null", "Hot Dog, """
    ):
        match(("null",), ["Null", "Hot Dog, Bun"], new=["Null", "Hot Dog", "Bun"])
    with pytest.raises(ConfigError, match=r"""did you mean 'cat, dog'\? In drop= it is written "cat, dog"\."""):
        match(("cat, dog", "cow"), ["owl"], drop=["cat; dog"])


# YAML files -----------------------------------------------------------------------------------------------------------


def test_what_yaml_takes_for_something_else_is_its_source(tmp_path: Path):
    content = "data: 010\nout: on\nweights: 1_000\nfirst: 2001-01-01\nupper_bound: [1.0, ~]\nepochs: 010\nseed: 3\n"
    (tmp_path / "run.yaml").write_text(content + "pool: ~\nmemory: {size: 3}\nmethod: {name: erd}\n")
    flat, problems = load.gather(tmp_path / "run.yaml")
    assert problems == []
    wanted = {"data": "010", "out": "on", "detector.weights": "1_000", "first": "2001-01-01",
              "upper_bound": ["1.0", "~"], "train.epochs": 8, "seed": 3, "pool.folder": None, "memory.size": 3,
              "method.name": "erd"}  # fmt: skip
    assert {k: flat[k] for k in wanted} == wanted


def test_a_scenario_file_of_names_that_look_like_numbers(tmp_path: Path):
    from ciod.data.scenarios.scenario import read_protocol

    (tmp_path / "mine.yaml").write_text("data: 010\nsplit: [[007, 1.0], [on]]\ntest_split: 2007\nimage_seed: 7\n")
    protocol = read_protocol(str(tmp_path / "mine.yaml"))
    assert (protocol.data, protocol.split, protocol.test_split) == ("010", [["007", "1.0"], ["on"]], "2007")
    assert protocol.image_seed == 7


def test_methods_of_a_comparison_are_typed_by_the_method(tmp_path: Path):
    (tmp_path / "mine #1.py").write_text(
        "from ciod.methods.base.method import Method\n\nclass Mine(Method):\n"
        "    path: str = ''\n    share: float = 0.5\n"
    )
    name = f"{tmp_path / 'mine #1.py'}:Mine"
    (entry,) = comparing.entries(f"[{{name: '{name}', path: 010, share: 1, label: 1e3}}]")
    assert (entry.name, entry.label, entry.settings) == (name, "1e3", {"path": "010", "share": 1})
    assert [e.name for e in comparing.entries(f"{name},finetune")] == [name, "finetune"]


# Proposals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", TABLES)
def test_what_is_proposed_is_a_setting(command):
    """Every setting with a letter too many, and what is proposed then: it is none of those that the command refuses."""
    table = TABLES[command]
    for key in sorted(table.keys()):
        for wrong in (f"{key}x", f"x{key}", key[:-1] + "_"):
            if table.annotation(table.full(wrong)) is not None:
                continue
            sentence = table.unknown(wrong)
            near = sentence.partition("did you mean '")[2].rstrip("'?")
            if near:
                kind = table.annotation(table.full(near))
                assert kind is not None and not reader._is_model(kind) and table.full(near) not in table.refused, (
                    sentence
                )


def test_a_mistake_in_a_section_is_corrected_in_it():
    assert load.TABLE.unknown("train.epoch").endswith("did you mean 'epochs'?")
    assert load.TABLE.unknown("memory.siz").endswith("did you mean 'memory.size'?"), "size= is the detector's"
    assert load.TABLE.unknown("trian.epochs").endswith("did you mean 'train.epochs'?")
    assert comparing.TABLE.unknown("methodz").endswith("did you mean 'methods'?")
    assert comparing.TABLE.unknown("sede").endswith("did you mean 'seeds'?")


def test_settings_that_the_whole_command_refuses_are_reported_together(tmp_path):
    with pytest.raises(ConfigError) as caught:
        commands.read(
            commands.EVAL, ["sise=3", "size=100", "data=/no/such", "device=gpu", "x"], takes="eval takes one model"
        )
    assert [p.partition(" ")[0] for p in caught.value.problems] == ["sise:", "size:", "eval", "data:", "device:"]
    with pytest.raises(ConfigError, match=r"^out: should be a path; write out=PATH, or leave it out\.$"):
        commands.read(commands.PREDICT, ["out="])


def test_a_neighbour_that_would_not_do_is_not_proposed(tmp_path):
    (tmp_path / "pets.txt").write_text("")
    (tmp_path / "weights.d").mkdir()
    with pytest.raises(ConfigError, match=r"there is no folder .*petz\.$"):
        commands.read(commands.EVAL, [f"data={tmp_path / 'petz'}"])
    (tmp_path / "pets").mkdir()  # no data set yet
    with pytest.raises(ConfigError, match=r"there is no folder .*petz\.$"):
        commands.read(commands.EVAL, [f"data={tmp_path / 'petz'}"])
    write_coco(sample_index(tmp_path / "raw"), tmp_path / "pets")
    with pytest.raises(ConfigError, match=r"there is no folder .*petz; did you mean '.*pets'\?$"):
        commands.read(commands.EVAL, [f"data={tmp_path / 'petz'}"])


def test_a_folder_that_is_called_like_a_variable_or_a_user(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PETS", "elsewhere")
    assert load.data_folder("$PETS") == "elsewhere" and load.data_folder("~no-such-user/x") == "~no-such-user/x"
    (tmp_path / "$PETS").mkdir()
    assert load.data_folder("$PETS") == "$PETS"

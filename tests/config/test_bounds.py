"""Numbers, lists and switches that a command cannot use: reported before anything is trained, in every command."""

from __future__ import annotations

import pytest
import torch
from typer.testing import CliRunner

from ciod import cli
from ciod.comparison.blocks import blocks_of
from ciod.comparison.settings import seeds_of
from ciod.config import commands, load
from ciod.core.errors import CiodError, ConfigError
from ciod.core.limits import LARGEST_SEED
from ciod.extension import settings as extending


def readers():
    return {
        "train": lambda seed: load.load(None, [f"seed={seed}", "data=shapes", "split=6+4"]),
        "extend": lambda seed: extending.load({"model": "m", "seed": seed}),
        "demo": lambda seed: commands.read(commands.DEMO, [f"seed={seed}"]),
        "image_seed": lambda seed: load.load(None, [f"image_seed={seed}", "data=shapes", "split=6+4"]),
    }


@pytest.mark.parametrize("seed", [-1, LARGEST_SEED + 1, 10**30])
@pytest.mark.parametrize("command", readers())
def test_a_seed_that_no_generator_takes(command, seed):
    with pytest.raises(ConfigError, match=r"seed: should be (less|greater) than or equal to"):
        readers()[command](seed)


def test_seeds_of_comparisons():
    for seed in (-1, LARGEST_SEED + 1):
        with pytest.raises(ConfigError, match="must say how many seeds"):
            seeds_of([0, seed])
        with pytest.raises(ConfigError, match="needs a seed, a number from 0"):
            blocks_of([{"seed": seed}], {})
    torch.manual_seed(LARGEST_SEED + 7919 * 1_000 + 2_000)  # of the last task of a long run


@pytest.mark.parametrize(
    ("word", "match"),
    [
        ("split=[]", r"split: names no task, such as \[\[cat, dog\], \[bird\]\]"),
        ("split=[cat, dog]", r"split: must be a list of tasks, each a list of its classes"),
        ("lr=", r"train\.lr: there is no value after the =\."),
        ("epochs= ", r"train\.epochs: there is no value after the =\."),
        ("amp=", r"train\.amp"),
    ],
)
def test_a_value_that_is_missing_or_of_another_shape(word, match):
    with pytest.raises(ConfigError, match=match):
        load.load(None, ["data=shapes", *([] if word.startswith("split") else ["split=6+4"]), word])


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("train --epochs=1", r"^--epochs: settings are written without dashes: epochs=1$"),
        ("train --epochs 5", r"without dashes: epochs=5$"),
        ("train -epochs=1", r"without dashes: epochs=1$"),
        ("eval m.pth --max-detections=3", r"without dashes: max_detections=3$"),
        ("eval m.pth --data", r"without dashes: data=VALUE$"),
        (
            "predict m.pth --conf 0.3",
            r"^predict has no option --conf; settings have no dashes: key=value\. See 'ciod p",
        ),
        ("list --foo", r"list has no option --foo"),
    ],
)
def test_a_setting_that_is_typed_as_an_option(line, match):
    with pytest.raises(CiodError, match=match):
        CliRunner().invoke(cli.app, line.split(), catch_exceptions=False)


@pytest.mark.parametrize("line", ["train -h", "list --plain methods", "eval --help", "train --subset 1% --help"])
def test_options_are_taken(line):
    assert CliRunner().invoke(cli.app, line.split()).exit_code in (0, 2)


@pytest.mark.parametrize("words", [["onnx=a.onnx", "hf=b"], ["mmdet=a", "hf=b"], ["onnx=a.onnx", "mmdet=b", "hf=c"]])
def test_one_kind_of_export(words):
    with pytest.raises(ConfigError, match=r"export writes one kind of file at a time, not (onnx|mmdet)= and .*hf="):
        commands.export_table(words)


def test_words_after_two_dashes():
    with pytest.raises(ConfigError, match=r"eval takes one model; '-x' is neither"):
        CliRunner().invoke(cli.app, ["eval", "m.pth", "data=.", "--", "-x"], catch_exceptions=False)

"""Which method goes with which detector: computed, listed, shown in the README, and explained when it does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from ciod import detectors, listing, methods
from ciod.config import load as config
from ciod.core.errors import ConfigError

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_readme_shows_the_computed_matrix():
    wanted = listing.methods_markdown()
    command = "python -c 'from ciod.listing import methods_markdown; print(methods_markdown())'"
    assert wanted in README.read_text(encoding="utf-8"), f"README, section Methods: put in what this prints: {command}"


def test_the_matrix_says_what_the_configuration_does(tmp_path):
    fits = listing.fits()
    assert fits["finetune"] == dict.fromkeys(fits["finetune"], True)
    assert fits["pseudo_label"] == dict.fromkeys(fits["pseudo_label"], True)
    dense = {name.split("-")[0] for name in detectors.offering(frozenset({"dense"}))}
    assert {family for family, fit in fits["ilyolox"].items() if fit} == dense  # without objectness too
    for method, row in fits.items():
        for family, fit in row.items():
            detector = next(d for d in detectors.available() if d.startswith(f"{family}-"))
            words = ["data=shapes", "split=6+4", f"method={method}", f"detector={detector}"]
            words += [f"pool={tmp_path}"] if methods.find(method).needs_unlabelled else []
            if fit:
                config.load(None, words)
            else:
                with pytest.raises(ConfigError, match=f"method: {method} needs a detector with .*, which {detector}"):
                    config.load(None, words)


def test_every_method_is_listed_with_its_paper(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    listing.show("methods", [], {})
    shown = capsys.readouterr().out
    assert all(f" {name} " in shown for name in methods.available())
    assert "Elastic Response Distillation, CVPR 2022" in shown and "✓" in shown


def test_one_methods_settings_with_what_they_mean(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    listing.show("methods", ["erd"], {})
    shown = capsys.readouterr().out
    assert all(key in shown for key in methods.find("erd").model_fields)
    assert "0.005" in shown and "Class-wise NMS among the box positions." in shown
    assert "old channels are not trained" in shown  # a setting of the base class


def test_a_setting_may_need_more_than_its_method():
    words = ["data=shapes", "split=6+4", "method=erd", "method.box_term=ld"]
    config.load(None, [*words, "detector=gfl-pico"])
    match = "erd needs a detector with box_distribution, which yolox-pico does not have; .*gfl-pico.* would do"
    with pytest.raises(ConfigError, match=match):
        config.load(None, [*words, "detector=yolox-pico"])

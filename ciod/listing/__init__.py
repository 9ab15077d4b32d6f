"""ciod list TOPIC · data PATH · SCENARIO · MODEL"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ciod.core.errors import CiodError, did_you_mean
from ciod.core.files import is_file, is_folder, no_model_file
from ciod.listing import model_files, scenarios, topics
from ciod.listing.sheet import Sheet
from ciod.listing.topics import detectors_markdown, environment, fits, header_value, methods_markdown

__all__ = ["TOPICS", "detectors_markdown", "environment", "fits", "header_value", "look_up", "methods_markdown", "show"]

TOPICS = ("detectors", "methods", "scenarios", "recipes", "settings", "environment", "data")
_WEIGHTS = (".pth", ".pt", ".ckpt", ".bin", ".weights", ".pkl")  # of checkpoints; only some can be read


def show(what: str, words: list[str], settings: dict[str, Any], *, plain: bool = False) -> dict[str, Any]:
    """Prints one topic, and returns it as JSON-ready values.

    Args:
        plain: one row per line, its cells separated by tabs.

    Raises:
        CiodError: there is no such topic.
    """
    sheet = look_up(what, words, settings)
    if plain:
        print(sheet.plain())
    else:
        sheet.show()
    return sheet.as_json()


def look_up(what: str, words: list[str], settings: dict[str, Any]) -> Sheet:
    """What is known of a topic, a data set, a scenario or a model file.

    Raises:
        CiodError: there is no such topic, or the file cannot be read.
    """
    if settings and what in TOPICS:
        raise CiodError(f"list {what} takes no settings ({', '.join(settings)}=).")
    if not what:
        return Sheet(["ciod list " + " | ".join((*TOPICS[:-1], "data PATH", "SCENARIO", "MODEL"))])
    if what == "methods":
        return topics.method(words[0]) if words else topics.methods()
    if what == "detectors" and words:
        return topics.detector(words[0])
    if what == "environment":
        lines = environment().splitlines()
        return Sheet(lines, content={"lines": lines})
    if what == "data":
        if not words:
            raise CiodError("list data: name a folder: ciod list data PATH")
        return topics.data_set(words[0])
    if what in TOPICS:
        return getattr(topics, what)()
    return _file_or_scenario(what, settings)


def _file_or_scenario(what: str, settings: dict[str, Any]) -> Sheet:
    from ciod.data.scenarios import scenario

    path = Path(what)
    if what.startswith("hf:"):
        return model_files.of_hub(what)
    if what.endswith(".safetensors"):
        return model_files.model(path)
    if path.suffix.lower() == ".onnx":
        return model_files.onnx(path)
    if what.endswith((".yaml", ".yml")) or what in scenario.available():
        return scenarios.tasks(what, settings)
    if is_file(path):
        return model_files.checkpoint(path)
    if path.suffix.lower() in _WEIGHTS:
        no_model_file(path, (".safetensors", ".onnx", *_WEIGHTS))
    if is_folder(path):
        if any(path.glob("model.*")) or any(path.glob("task-*/model.*")):
            no_model_file(path, (".safetensors", ".onnx"))
        raise CiodError(f"list: {what} is a folder; if it holds a data set: ciod list data {what}")
    hint = did_you_mean(what, (*TOPICS, *scenario.available()), listing=20).replace("'data'", "'data PATH'")
    raise CiodError(f"list: there is no '{what}'; {hint}")

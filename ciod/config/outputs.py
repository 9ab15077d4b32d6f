"""One rule for what ciod writes: it takes the place of its own earlier result of the same kind, and of nothing else.

Another file is replaced only with ``overwrite=true``, where a command has it, and an input never.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ciod.core.files import exists, is_file, is_folder
from ciod.core.reading import Unreadable, read_object

COMPARED = ("compare.json", "compare.csv", "differences.csv", "compare.md", "compare.tex", "compare.html")
_STATE = Path("last") / "state.pt"


def run_folder(out: object, folders: Mapping[str, object], models: Mapping[str, object], key: str = "out") -> list[str]:
    """What is wrong with a folder for a run: it must not be mixed with what the run reads.

    Args:
        folders: setting → folder of data or pictures; None or absent ones are left out.
        models: setting → model file.
    """
    if not out or exists(Path(str(out)) / _STATE):  # a run is there: to resume it changes no folder
        return []
    problems, mine = [], os.path.realpath(str(out))
    for name, path in folders.items():
        if not path or not exists(str(path)):
            continue
        theirs = os.path.realpath(str(path))
        alone = not is_folder(theirs)  # a JSON or YAML file of a data set
        place = os.path.dirname(theirs) if alone else theirs  # noqa: PTH120
        how = "is" if mine in (place, theirs) else None if alone else _nested(mine, place)
        if how:
            problems.append(
                f"{key}: {out} {how} the folder of {name}= ({path}); results and pictures would be mixed. Choose "
                f"another {key}=."
            )
    for name, path in models.items():
        if not path or not is_file(str(path)):
            continue
        place = Path(os.path.realpath(str(path))).parent
        if mine in (str(place), str(place.parent) if place.name.startswith("task-") else ""):
            problems.append(f"{key}: {out} is the folder of {name}= ({path}); choose another {key}=.")
    return problems


def data_folder(key: str, out: object, data: object) -> list[str]:
    """What is wrong with a folder for pages and pictures: a data set would read them as its own."""
    if not out or not data or not is_folder(str(data)) or os.path.realpath(str(out)) != os.path.realpath(str(data)):
        return []
    return [f"{key}: {out} is the folder of data=; results and pictures would be mixed. Choose another {key}=."]


def _nested(mine: str, theirs: str) -> str | None:
    if mine.startswith(theirs.rstrip(os.sep) + os.sep):
        return "lies inside"
    return "contains" if theirs.startswith(mine.rstrip(os.sep) + os.sep) else None


def of_comparison(folder: Path) -> bool:
    """Whether ``ciod compare`` works or worked in a folder."""
    if _is_comparison(folder):
        return True
    try:
        return any(is_file(inside / "cell.json") for inside in folder.iterdir())
    except (OSError, ValueError):
        return False


def comparison_folder(key: str, folder: Path) -> list[str]:
    """What is wrong with a folder for a comparison: a single run, or files of others with the names of its tables."""
    if exists(folder / _STATE) or is_file(folder / "run.yaml"):
        return [f"{key}: {folder} holds a single run (ciod train or extend), no comparison; choose another {key}=."]
    foreign = [] if key != "out" or of_comparison(folder) else [n for n in COMPARED if os.path.lexists(folder / n)]
    if foreign:
        return [f"{key}: {folder / foreign[0]} exists already and is not of a comparison; choose another {key}=."]
    return []


def _is_comparison(folder: Path) -> bool:
    try:
        return {"format", "scenario", "runs"} <= read_object(folder / "compare.json").keys()
    except Unreadable:
        return False

"""What each task of a scenario would see, before any training."""

from __future__ import annotations

from typing import Any

from ciod.core.plural import few
from ciod.listing.sheet import Sheet


def tasks(name: str, settings: dict[str, Any]) -> Sheet:
    """Images, boxes and hidden boxes of every task.

    Raises:
        CiodError: settings that do not fit the scenario, or no data.
    """
    from ciod.config import load as config
    from ciod.data.scenarios.scenario import Scenario
    from ciod.runs.start import open_data

    run = config.load(None, {"scenario": name, **settings})
    made = Scenario(run.protocol, *open_data(run))
    classes = "classes" if made.repeats else "new classes"
    columns = ("task", classes, "images", "boxes", "old boxes hidden", "future boxes hidden", "test images")
    sheet = Sheet([f"- {sentence}" for sentence in made.sentences()], columns=columns)
    for task in made:
        counts = (len(task.train), len(task.train.labels), task.hidden_boxes, task.future_boxes, len(task.test))
        sheet.rows.append((str(task.index + 1), few(task.taught_classes), *map(str, counts)))
    if made.protocol.images == "loco":
        from ciod.data.scenarios import loco

        sheet.after += [f"cluster {i}: {', '.join(names)}" for i, names in enumerate(made.groups, 1)]
        shared = loco.shared_images(made.train, made.groups)
        sheet.after.append(f"{shared} training images show classes of more than one cluster")
    left = [n for n in made.protocol.order if n not in made.classes] if isinstance(made.protocol.order, list) else []
    if left:
        sheet.after.append(f"in no task: {', '.join(left)}")
    sheet.content = {"scenario": name, "protocol": list(made.sentences()), "classes": list(made.classes)}
    return sheet

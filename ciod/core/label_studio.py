"""Boxes as Label Studio writes them: corner and sides in percent of the picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def results(
    boxes: Iterable[Sequence[float]],
    names: Sequence[str],
    scores: Sequence[float | None],
    width: int,
    height: int,
    *,
    from_name: str = "label",
    to_name: str = "image",
) -> list[dict[str, Any]]:
    """The ``result`` of a prediction or an annotation.

    Args:
        boxes: x1, y1, x2, y2 in pixels of the picture.
        scores: None: a box of a person.
        width, height: of the picture.
        from_name, to_name: the names of ``RectangleLabels`` and ``Image`` in the labelling interface of the project.
    """
    found: list[dict[str, Any]] = []
    for k, ((x1, y1, x2, y2), name, score) in enumerate(zip(boxes, names, scores, strict=True)):
        place = {"x": x1 / width, "y": y1 / height, "width": (x2 - x1) / width, "height": (y2 - y1) / height}
        value = {**{n: round(100 * v, 4) for n, v in place.items()}, "rotation": 0, "rectanglelabels": [name]}
        found.append(
            {
                "id": f"box{k}",
                "type": "rectanglelabels",
                "from_name": from_name,
                "to_name": to_name,
                "original_width": width,
                "original_height": height,
                "value": value,
                **({} if score is None else {"score": score}),
            }
        )
    return found

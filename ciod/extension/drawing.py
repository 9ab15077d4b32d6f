"""Pictures of a data set with detections on them, as files beside the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ciod.core.errors import DataError
from ciod.core.types import Detections
from ciod.data.images import read_image, save_image
from ciod.data.index import Index
from ciod.report.draw import draw_boxes


def save_drawn(path: Path, index: Index, i: int, found: Detections, objects: np.ndarray) -> bool:
    """Writes picture ``i`` of an index with detections, and with objects of it dashed.

    Args:
        objects: their rows in the index.

    Returns:
        False: the picture cannot be read, and nothing was written.
    """
    height, width = (int(v) for v in index.sizes[i])
    try:
        picture = read_image(index.files[i], (height, width), stored=index.is_stored(i))
    except DataError:
        return False
    truth = Detections(index.boxes[objects], np.ones(len(objects)), index.labels[objects], index.class_names)
    save_image(path, draw_boxes(picture, found, truth=truth))
    return True

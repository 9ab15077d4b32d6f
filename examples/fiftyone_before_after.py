"""Before and after an extension, side by side in FiftyOne (pip install fiftyone).

    python examples/fiftyone_before_after.py old.safetensors runs/extended/model.safetensors photographs/

Every picture becomes a sample with two fields, ``before`` and ``after``; in the app, the filter of labels shows what
the extended model finds that the old one did not, and whether old objects are still found.
"""

from __future__ import annotations

import sys
from pathlib import Path

import ciod
from ciod.data.images import read_header


def samples(before: str | Path, after: str | Path, pictures: str | Path, score: float = 0.3) -> list:
    """A ``fiftyone.Sample`` for each picture that can be read."""
    import fiftyone

    found = {
        name: ciod.predict(model, pictures, score_threshold=score)
        for name, model in (("before", before), ("after", after))
    }
    made = []
    for path in found["after"]:
        height, width = read_header(path)[0]
        sample = fiftyone.Sample(filepath=str(path.resolve()))
        for name, detections in found.items():
            sample[name] = detections[path].to_fiftyone(width, height)
        made.append(sample)
    return made


def main() -> None:
    import fiftyone

    data = fiftyone.Dataset("before and after", overwrite=True)
    data.add_samples(samples(*sys.argv[1:4]))
    fiftyone.launch_app(data).wait()


if __name__ == "__main__":
    main()

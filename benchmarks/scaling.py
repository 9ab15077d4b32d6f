"""python -m benchmarks.scaling

How the head mathematics of ilYOLOX grow with classes, images and kept positions, and a whole step with the number of
classes the head has grown by: the exponent of a power law through the medians. 1 is linear; more would be a defect.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from benchmarks import head, scenes, timing
from ciod import detectors

BASE = {"images": 2, "classes": 40, "objects": 16}
SWEEPS = {"images": (1, 2, 4, 8), "classes": (20, 40, 80, 160), "objects": (8, 16, 32, 64, 128)}


def cost(**changed: int) -> Callable[[], None]:
    """One evaluation of losses and gradients on a scene of this size."""
    given = BASE | changed
    student, teacher, real = scenes.scene(**given, size=320, old=given["classes"] // 2)
    method = head.vectorised(given["classes"] // 2)

    def run() -> None:
        losses = method.losses(scenes.trained(student), teacher, method.choose(teacher), real)
        torch.stack(list(losses.values())).sum().backward()

    return run


def forward(growths: int) -> Callable[[], None]:
    """A forward of a detector whose head has grown by two classes ``growths`` times."""
    detector = detectors.build(["a", "b"], name="yolox-pico", size=320).eval()
    for i in range(growths):
        detector.grow([f"{i} a", f"{i} b"])
    images = torch.zeros(2, 3, 320, 320)

    @torch.no_grad()
    def run() -> None:
        detector(images)

    return run


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Slope of log seconds over log size, by least squares."""
    x, y = [math.log(s) for s in sizes], [math.log(s) for s in seconds]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y)) / sum((a - mx) ** 2 for a in x)


def main() -> None:
    args = timing.parser(__doc__, rounds=7).parse_args()
    torch.set_num_threads(args.threads)
    lines, figures = [], {}
    sweeps: dict[str, dict[int, Callable[[], None]]] = {
        name: {size: cost(**{name: size}) for size in sizes} for name, sizes in SWEEPS.items()
    }
    sweeps["growths of the head"] = {n: forward(n) for n in (1, 2, 4, 8, 16)}
    for name, calls in sweeps.items():
        seconds = timing.medians(timing.interleaved({str(k): c for k, c in calls.items()}, rounds=args.rounds))
        power = exponent(list(calls), list(seconds.values()))
        shown = "  ".join(f"{k}: {1000 * v:.1f} ms" for k, v in seconds.items())
        lines.append(f"{name:20s} exponent {power:.2f}   {shown}")
        figures[name] = {"exponent": power, "seconds": seconds}
    timing.tell(lines, figures, args.json)


if __name__ == "__main__":
    main()

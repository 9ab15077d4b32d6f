"""python -m benchmarks.head

ilYOLOX's head mathematics (selection, matching, losses, and their gradients) in ciod against the same formulas written
as loops over images and objects (``benchmarks.reference``), on the same outputs in the same run.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch

from benchmarks import reference, scenes, timing
from ciod.detectors.yolox import YOLOX
from ciod.methods.ilyolox import ILYOLOX

PUBLISHED = 2.2  # seconds on 2 CPU cores: matching and losses of the published implementation, its faster end


def vectorised(old: int) -> ILYOLOX:
    """The method with nothing but the head mathematics of a YOLOX behind it."""
    method = ILYOLOX(nms_iou=0.95)
    method.attach(lambda images: None, YOLOX([], name="yolox-pico"), None)
    method.begin_task(SimpleNamespace(repeated_classes=(), old_classes=range(old)))
    return method


def main() -> None:
    parse = timing.parser(__doc__, images=8, size=640, classes=80, old=40, objects=31, rounds=5)
    args = parse.parse_args()
    torch.set_num_threads(args.threads)
    student, teacher, real = scenes.scene(
        images=args.images, size=args.size, classes=args.classes, old=args.old, objects=args.objects
    )
    method = vectorised(args.old)
    kept = method.choose(teacher)

    def ours() -> dict[str, torch.Tensor]:
        out = scenes.trained(student)
        losses = method.losses(out, teacher, method.choose(teacher), real)
        torch.stack(list(losses.values())).sum().backward()
        return losses

    def plain() -> dict[str, torch.Tensor]:
        out = scenes.trained(student)
        losses = reference.step(out, teacher, real, args.old)
        torch.stack(list(losses.values())).sum().backward()
        return losses

    def choosing() -> None:
        method.choose(teacher)

    seconds = timing.medians(
        timing.interleaved({"ciod": ours, "reference": plain, "selection": choosing}, rounds=args.rounds)
    )
    ratio = seconds["reference"] / seconds["ciod"]
    mine, theirs = ours(), plain()
    gap = max(abs(mine[k].item() - theirs[k].item()) / abs(theirs[k].item()) for k in theirs)
    timing.tell(
        [
            f"{args.images} images of {args.size} px, {args.classes} classes, {int(kept.valid.sum())} kept positions",
            f"ciod {seconds['ciod']:.3f} s (selection {seconds['selection']:.3f} s), "
            f"loop by loop {seconds['reference']:.3f} s: {ratio:.1f} times as fast",
            f"published implementation {PUBLISHED} s at this size on 2 cores: {PUBLISHED / seconds['ciod']:.1f} times",
            f"largest relative difference of a loss: {gap:.1e}",
        ],
        {"seconds": seconds, "ratio": ratio, "kept": int(kept.valid.sum()), "difference": gap},
        args.json,
    )


if __name__ == "__main__":
    main()

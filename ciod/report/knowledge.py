"""Shows what ilYOLOX teaches on one image: which positions CRS keeps, and how CKD weights them.

    python -m ciod.report.knowledge TEACHER STUDENT PICTURE out=FILE.jpg [nms_iou=0.65 …]

TEACHER and STUDENT are models of two tasks, one after the other (``task-1/model.safetensors``, ``task-2/…``); further
arguments are settings of ``ilyolox``. The student is matched only with the pseudo boxes, because an image alone has no
real boxes.
"""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ciod.core.errors import CiodError, ConfigError
from ciod.core.files import atomic_write
from ciod.methods.base import selection
from ciod.methods.ilyolox import ILYOLOX

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

    from ciod.core.types import Outputs
    from ciod.detectors.base import Detector

KINDS = ("jpg", "png", "svg", "pdf")
GREY, DARK = "#71717A", "#18181B"


@dataclass
class Knowledge:
    """CRS and CKD on one image; P positions, M matches of the student with a pseudo box."""

    picture: np.ndarray  # [size, size, 3] uint8, the input of the detectors
    points: Tensor  # [P, 2] the centres of the positions' cells, in pixels
    strides: Tensor  # [P]
    labels: Tensor  # [P] the teacher's best class
    center: Tensor  # [P] bool
    recruited: Tensor  # [P] bool: centers and their neighbours, before the gate
    gated: Tensor  # [P] bool: of these, those that reach ``other_score``
    kept: Tensor  # [P] bool: of these, those that remain after NMS
    boxes: Tensor  # [K, 4] the pseudo boxes
    box_labels: Tensor  # [K]
    matched: Tensor  # [M] positions of the student
    bce: Tensor  # [M] w_cls in 0..2 with the class error as BCE
    kl: Tensor  # [M] the same with KL


@torch.no_grad()
def knowledge(teacher: Detector, student: Detector, picture: np.ndarray, method: ILYOLOX) -> Knowledge:
    """The selection and weights of ``method``, with CRS, on ``picture`` [H, W, 3] RGB.

    Raises:
        CiodError: a detector without objectness, or a student whose first classes are not the teacher's.
    """
    from ciod.data.augment import put

    _check(teacher, student)
    size = student.input.size
    image, _ = put(picture, size, student.input.fill, student.input.place)
    student, teacher = student.eval(), teacher.eval()
    teacher_outputs: Outputs = teacher(image[None])
    old = teacher.num_classes if method.only_old else None
    r = selection.respond(teacher_outputs, old)

    def crs(**changes: float) -> selection.Kept:
        given = {k: getattr(method, k) for k in ("center_score", "other_score", "other_iou", "nms_iou")}
        return selection.center_resampling(teacher_outputs, classes=old, **(given | changes))

    kept = crs()
    positions = teacher_outputs.logits.shape[1]
    answer = student(image[None])
    matches = student.match(answer, kept.targets)
    weights = []
    for error in ("bce", "kl"):
        settings = {**method.model_dump(), "error": error, "target": "soft", "weighted": True}
        pairs = ILYOLOX.model_validate(settings).pair(answer, teacher_outputs, kept, matches)
        weights.append(method.model_copy(update={"weighted": True}).collaborate(pairs.cls_error, pairs.loc_error)[0])
    found, ok = matches.valid[0], kept.valid[0]
    return Knowledge(
        image.permute(1, 2, 0).numpy(),
        _centres(teacher_outputs),
        teacher_outputs.strides,
        r.label[0],
        (r.old & (r.class_score >= method.center_score))[0],
        crs(other_score=0.0, nms_iou=1.0).mask(positions)[0],
        crs(nms_iou=1.0).mask(positions)[0],
        kept.mask(positions)[0],
        kept.boxes[0, ok],
        kept.labels[0, ok],
        matches.position[0, found],
        weights[0][0, found],
        weights[1][0, found],
    )


def _check(teacher: Detector, student: Detector) -> None:
    for what, detector in (("teacher", teacher), ("student", student)):
        lacking = ILYOLOX.needs - detector.traits
        if lacking:
            raise CiodError(f"ilyolox cannot use the {what}: this detector has no {', '.join(sorted(lacking))}.")
    if student.class_names[: teacher.num_classes] != teacher.class_names:
        raise CiodError(
            f"The student's first classes ({', '.join(student.class_names[:8])}) are not the teacher's "
            f"({', '.join(teacher.class_names[:8])}): give models of two tasks of one run, the earlier first."
        )


def _centres(outputs: Outputs) -> Tensor:
    """The centres of all cells, also for detectors whose points are the corners."""
    corner = (outputs.points / outputs.strides[:, None]).floor() * outputs.strides[:, None]
    return corner + outputs.strides[:, None] / 2


# ----------------------------------------------------------------------------------------------------------- drawing


def draw(k: Knowledge, names: tuple[str, ...], path: Path | str) -> Path:
    """Writes the figure in the format of the suffix of ``path``: jpg, png, svg, pdf.

    Raises:
        CiodError: another suffix, or a file that cannot be written.
    """
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize
    from matplotlib.figure import Figure

    path = Path(path)
    scale = LinearSegmentedColormap.from_list("ckd", ["#0072B2", "#F4F4F5", "#D55E00"]), Normalize(0, 2)
    with matplotlib.rc_context({"font.size": 10, "text.parse_math": False}):
        figure = Figure(figsize=(9.6, 10.75), facecolor="white")
        axes = figure.subplots(2, 2)
        figure.subplots_adjust(left=0.01, right=0.99, top=0.97, bottom=0.075, wspace=0.03, hspace=0.14)
        out = k.recruited & ~k.gated
        _panel(axes[0, 0], k, f"Before: {int(k.center.sum())} centers, {int((k.center & out).sum())} below the gate")
        _dots(axes[0, 0], k, k.center & ~out, "o", filled=True, label="center")
        _dots(axes[0, 0], k, k.center & out, "X", filled=False, label="gated out")
        _panel(axes[0, 1], k, f"After re-sampling: {int(k.kept.sum())} positions are kept")
        _dots(axes[0, 1], k, k.gated & ~k.kept, ".", filled=False, label="lost in NMS")
        _dots(axes[0, 1], k, out, "X", filled=False, label="gated out")
        _dots(axes[0, 1], k, k.kept & k.center, "o", filled=True, label="center")
        _dots(axes[0, 1], k, k.kept & ~k.center, "D", filled=True, label="re-sampled")
        for ax, weight, what in ((axes[1, 0], k.bce, "BCE"), (axes[1, 1], k.kl, "KL")):
            weights = f"class weight {weight.min():.2f} to {weight.max():.2f}" if len(weight) else "no match"
            _panel(ax, k, f"CKD with {what}: {weights}")
            _boxes(ax, k, names)
            at = k.points[k.matched]
            ax.scatter(at[:, 0], at[:, 1], c=weight, cmap=scale[0], norm=scale[1], s=75, edgecolors=DARK, zorder=3)
        for ax in axes[0]:
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=4, fontsize=8.5, frameon=False,
                      handletextpad=0.1, columnspacing=0.9)  # fmt: skip
        ruler = figure.add_axes((0.15, 0.056, 0.7, 0.012))
        bar = figure.colorbar(ScalarMappable(scale[1], scale[0]), cax=ruler, orientation="horizontal")
        bar.set_label("weight of the class error, 2 minus that of the box error")
        bar.set_ticks([0, 0.5, 1, 1.5, 2], labels=["0: box alone", "0.5", "1: balance", "1.5", "2: class alone"])
        kind = _kind(path)
        more: dict[str, Any] = {"pil_kwargs": {"quality": 85}} if kind == "jpg" else {}
        made = io.BytesIO()
        figure.savefig(made, dpi=110, format=kind, **more)
    atomic_write(path, made.getvalue())
    return path


def _kind(path: Path) -> str:
    kind = path.suffix.lower()[1:].replace("jpeg", "jpg")
    if kind not in KINDS:
        raise CiodError(f"out: the figure can be {', '.join(KINDS)}; {path.name} has none of these suffixes.")
    return kind


def _panel(ax: Axes, k: Knowledge, title: str) -> None:
    ax.imshow(k.picture, interpolation="bicubic", alpha=0.75)
    ax.autoscale(False)
    ax.set_title(title, fontsize=10.5, loc="left")
    ax.set_axis_off()


def _dots(ax: Axes, k: Knowledge, which: Tensor, marker: str, *, filled: bool, label: str) -> None:
    """Positions in the colour of their class, larger on coarser levels; grey if they are not kept."""
    from ciod.report.draw import PALETTE

    at, size = k.points[which], k.strides[which].log2() * 22 - 20
    colours = [PALETTE[int(y) % len(PALETTE)] for y in k.labels[which]] if filled else GREY
    rim, size = (DARK, size) if filled else ("white", size * 0.8)
    ax.scatter(at[:, 0], at[:, 1], s=size, c=colours, marker=marker, edgecolors=rim, linewidths=0.9, zorder=2 + filled)
    ax.scatter([], [], s=55, c=DARK if filled else GREY, marker=marker, label=f"{label} ({int(which.sum())})")


def _boxes(ax: Axes, k: Knowledge, names: tuple[str, ...]) -> None:
    """The pseudo boxes; each class is named once, above its first box, or below it if the space is taken."""
    from matplotlib.patches import Rectangle

    from ciod.report.draw import PALETTE

    named: dict[int, tuple[float, float]] = {}
    near = len(k.picture) / 10
    for (x0, y0, x1, y1), y in zip(k.boxes.tolist(), k.box_labels.tolist()):
        colour = PALETTE[y % len(PALETTE)]
        ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=1.2))
        if y not in named:
            covered = any(abs(x0 - a) < 2 * near and abs(y0 - b) < near / 2 for a, b in named.values())
            place, above = ((x0, y1 + 1), "top") if covered else ((x0, y0 - 1), "bottom")
            named[y] = place
            ax.text(*place, names[y], color="white", fontsize=9, va=above, zorder=4, clip_on=True,
                    bbox={"facecolor": DARK, "edgecolor": colour, "pad": 1.5, "alpha": 0.8})  # fmt: skip


def main(words: list[str]) -> Path:
    """The command; see the module.

    Raises:
        CiodError: any problem with the arguments, the models or the image.
    """
    from ciod.config.load import problems_of
    from ciod.config.reader import Table, split
    from ciod.data.images import read_image
    from ciod.detectors.files import weights

    plain, given, problems = split(words)
    out = given.pop("out", None)
    flat, more = Table(ILYOLOX).settings(given)
    problems += more
    if len(plain) != 3 or out is None:
        problems.append("Write TEACHER STUDENT PICTURE out=FILE: two models of one run, the earlier first.")
    if flat.get("select", "crs") != "crs":
        problems.append("select: the figure shows only crs; leave select= out.")
    problems += problems_of(ILYOLOX, flat)
    if problems:
        raise ConfigError(problems)
    _kind(Path(str(out)))
    teacher, student = (weights.load(Path(p)) for p in plain[:2])
    found = knowledge(teacher, student, read_image(Path(plain[2])), ILYOLOX.model_validate(flat))
    return draw(found, student.class_names, str(out))


if __name__ == "__main__":
    try:
        print(main(sys.argv[1:]))
    except CiodError as error:
        sys.exit(f"ciod: {error}")

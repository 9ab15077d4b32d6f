"""The checks of what a detector learns: matches and losses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ciod.contract.material import NAMES, Subject, summed
from ciod.contract.report import NotChecked
from ciod.core.types import Targets
from ciod.training.method_checks import waiting

_WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero")


def matches(s: Subject) -> Iterator[str]:
    """match finds positions for boxes, and none without."""
    detector = s.make()
    out, _, found = s.matched(detector, (5, 2))
    shapes = {k: list(getattr(found, k).shape) for k in ("position", "target", "iou", "valid")}
    if len({*map(str, shapes.values())}) > 1 or list(found.positive.shape) != list(out.logits.shape[:2]):
        yield (
            f"{s.at('match')} returned shapes that do not belong together: {shapes}, positive "
            f"{list(found.positive.shape)}; the first four are [B, K], positive is [B, P]."
        )
        return
    for b, n in enumerate((5, 2)):
        ok = found.valid[b]
        if not ok.any():
            yield f"{s.at('match')} finds no position for boxes of an eighth to a half of the picture."
        elif sorted({*found.position[b, ok].tolist()}) != found.positive[b].nonzero().squeeze(1).tolist():
            yield f"{s.at('match')}: positive does not mark the positions of the valid matches."
        elif (found.target[b, ok] >= n).any() or (found.target[b, ok] < 0).any():
            yield f"{s.at('match')} matches a position with a box that is only padding; mind targets.valid."
        elif not ((found.iou[b, ok] >= 0) & (found.iou[b, ok] <= 1)).all():
            yield f"{s.at('match')} returned iou outside 0..1."
    if found.ignored is not None and (found.ignored & found.positive).any():
        yield f"{s.at('match')} marks positions as ignored that are matched."
    none = detector.match(out, s.boxes([0, 0]))
    if none.valid.any() or none.positive.any():
        yield f"{s.at('match')} matches positions in pictures without boxes."


def plain(s: Subject) -> Iterator[str]:
    """Losses are finite float32 scalars with gradients, also without boxes."""
    names = None
    for counts in ((3, 1), (0, 2), (0, 0)):
        detector = s.make()
        out, targets, found = s.matched(detector, counts)
        losses = detector.loss(out, targets, found)
        wrong = list(_wrong(s, losses))
        yield from wrong
        if wrong:
            return
        if names not in (None, tuple(losses)):
            yield f"{s.at('loss')} returned other names for other boxes: {', '.join(losses)}."
        names = tuple(losses)
        if not any(counts):
            bad = [k for k, v in losses.items() if k not in ("cls", "obj") and float(v.detach()) != 0]
            if bad:
                yield f"{s.at('loss')}: '{bad[0]}' is not 0 although no picture has a box."
            if float(summed(losses).detach()) > out.logits.shape[1] * 0.2:
                yield f"{s.at('loss')}: without boxes the losses are huge; divide by losses.count, which is at least 1."
        summed(losses).backward()
        for name, p in detector.named_parameters():
            if not p.requires_grad:
                continue
            if p.grad is None:
                yield f"{s.at('loss')} leaves {name} out when pictures have {counts} boxes; other processes would wait."
                break
            if not p.grad.isfinite().all():
                yield f"{s.at('loss')} gives {name} a gradient that is not finite when pictures have {counts} boxes."
                break


def _wrong(s: Subject, losses: Any) -> Iterator[str]:
    for name, value in losses.items():
        if value.dtype != torch.float32:
            yield f"{s.at('loss')}: '{name}' is {value.dtype}; losses are float32."
        elif not bool(value.isfinite()):
            yield f"{s.at('loss')}: '{name}' is not finite."
    if lacking := [n for n in ("cls", "box") if n not in losses]:
        yield f"{s.at('loss')} returned no '{lacking[0]}': methods use the losses cls and box by name."


def counted(s: Subject) -> Iterator[str]:
    """A match that is not counted moves neither classes nor boxes."""
    detector = s.make()
    out, targets, found = s.matched(detector)
    out = replace(out, logits=out.logits.detach().requires_grad_(), boxes=out.boxes.detach())
    mask = torch.zeros_like(found.valid)
    mask[0] = found.valid[0]
    gradient = torch.autograd.grad(detector.loss(out, targets, found, counted=mask)["cls"], out.logits)[0]
    if gradient[1, found.positive[1]].any() or not gradient[0, found.positive[0]].any():
        yield f"{s.at('loss')}: 'cls' does not follow counted; multiply it with the mask of losses.supervise."
    with torch.no_grad():
        none = detector.loss(out, targets, found, counted=torch.zeros_like(mask))
        whole = detector.loss(out, targets, found)
    if float(none["box"]) != 0 or float(whole["box"]) <= 0:
        yield f"{s.at('loss')}: 'box' does not follow counted: {float(none['box']):.3g} when no match counts."
    if "obj" in whole and float(none["obj"]) != float(whole["obj"]):
        yield f"{s.at('loss')}: 'obj' changes with counted; objectness uses every match."


def channels(s: Subject) -> Iterator[str]:
    """Class channels that are masked get no gradient at all."""
    if s.regions:
        raise NotChecked("in a softmax with background, a class that is masked counts as background")
    detector = s.make(("ant", "bee"))
    detector.grow(["cow", "dog"])
    out, targets, found = s.matched(detector)
    on = torch.tensor([False, True, False, True])
    summed(detector.loss(out, targets, found, channels=on)).backward()
    seen = False
    for rows in detector.class_layers():
        for i in range(len(rows.tensor)):
            moved = rows.tensor.grad is not None and bool(rows.tensor.grad[i].any())
            seen |= moved and bool(on[rows.first + i])
            if moved and not on[rows.first + i]:
                yield f"{s.at('loss')}: {rows.name} gets a gradient for a class that channels leaves out."
    if not seen:
        yield f"{s.at('loss')}: no class gets a gradient when channels leaves some out."


def incomplete(s: Subject) -> Iterator[str]:
    """Unlabelled objects give no gradient: ``losses.supervise``."""
    detector = s.make()
    out, targets, _ = s.matched(detector, (3, 0))
    out = replace(out, logits=out.logits.detach().requires_grad_())

    def gradient(given: Targets) -> Tensor:
        loss = detector.loss(out, given, detector.match(out, given))["cls"]
        return torch.autograd.grad(loss, out.logits)[0]

    at = s.at("loss")
    if gradient(replace(targets, background=torch.tensor([True, False])))[1].any():
        yield f"{at}: a picture without labels (targets.background) is learnt as background."
    doubtful = gradient(replace(targets, doubtful=torch.ones_like(targets.valid)))
    matched = detector.match(out, targets).positive[0]
    if doubtful[0, matched].any():
        yield f"{at}: positions of doubtful boxes (targets.doubtful) get a gradient of the class loss."
    if s.regions:
        return  # a class that is not labelled counts as background
    unlabelled = gradient(replace(targets, known=torch.tensor([[True, False, True], [True] * 3])))
    if unlabelled[0, ~matched, 1].any() or not unlabelled[0, :, 2].any():
        yield f"{at}: a class that is not labelled in a picture (targets.known) is learnt as background there."


class _Called(TorchDispatchMode):
    """Notes operations that wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().partition(".")[0].removeprefix("aten::")
        if name in _WAITS:
            self.names.add(name)
        places = args[1] if name.startswith("index") and isinstance(args[1], (list, tuple)) else ()
        if any(i is not None and i.dtype == torch.bool for i in places):
            self.names.add("a mask as an index")
        return func(*args, **(kwargs or {}))


def waits(s: Subject) -> Iterator[str]:
    """forward, match and loss wait for nothing: no .item(), no mask as an index."""
    detector, targets = s.make(), s.boxes((3, 1))
    out = detector(s.pictures()) if s.query else None  # the network of a library, which reads the sizes of its maps
    with waiting() as lines, _Called() as called:
        out = detector(s.pictures()) if out is None else out
        found = detector.match(out, targets)
        for given in (torch.tensor([True] * len(NAMES)), found.positive[..., None].expand_as(out.logits)):
            summed(detector.loss(out, targets, found, channels=given)).backward(retain_graph=True)
    places = ", ".join(f"line {line} ({what})" for (_, line), what in lines.items())
    if places or called.names:
        yield (
            f"{s.at('loss')}: each step waits for the device: {places or ', '.join(sorted(called.names))}. Keep "
            "numbers as tensors, and select with torch.where and masks."
        )


def order(s: Subject) -> Iterator[str]:
    """The order of the pictures in a batch does not matter."""
    detector = s.make().eval()
    out, targets, found = s.matched(detector, (3, 0, 2))
    turn = torch.tensor([2, 0, 1])
    turned = Targets(targets.boxes[turn], targets.labels[turn], targets.valid[turn])
    other = detector(s.pictures(3)[turn])
    mine, theirs = (
        detector.loss(o, t, m) for o, t, m in ((out, targets, found), (other, turned, detector.match(other, turned)))
    )
    for name, loss in mine.items():
        a, b = float(loss.detach()), float(theirs[name].detach())
        if abs(a - b) > 1e-4 * abs(a) + 1e-7:
            yield f"{s.at('loss')}: '{name}' is {a:.6g}, and {b:.6g} when the same pictures come in another order."

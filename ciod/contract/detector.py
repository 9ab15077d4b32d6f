"""The checks of a detector, in the order in which they are reported."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from ciod.contract import losses
from ciod.contract.material import FIELDS, NAMES, Ranks, Subject, different, lively, still, summed
from ciod.contract.material import step as train_step
from ciod.contract.report import Check, NotChecked
from ciod.core.errors import CiodError
from ciod.core.types import Outputs
from ciod.detectors.base import Detector
from ciod.detectors.files import weights
from ciod.detectors.layers.class_layers import PRIOR
from ciod.detectors.rcnn.outputs import RoIOutputs

# Outputs --------------------------------------------------------------------------------------------------------------


def outputs(s: Subject) -> Iterator[str]:
    """Outputs have the promised shapes, are float32 and finite."""
    detector = s.make().eval()
    if detector.input.size != s.size:
        yield f"{s.at('__init__')}: size={s.size} is given, but its pictures have {detector.input.size} pixels."
    if detector.settings.get("size") != s.size:
        yield f"{s.at('__init__')}: the settings lack size={s.size}; a model file would be loaded with another size."
    with torch.no_grad():
        out, again = detector(s.pictures()), detector(s.pictures())
    yield from _shapes(s, out, detector.traits)
    for name in FIELDS:
        value = getattr(out, name)
        if value is not None and value.dtype != torch.float32:
            yield f"{s.at('forward')} returned {name} as {value.dtype}; Outputs are float32."
        elif value is not None and not value.isfinite().all():
            yield f"{s.at('forward')} returned {name} that are not finite, for pictures at random."
    if "dense" in detector.traits:
        if out.levels and sum(out.levels) != out.logits.shape[1]:
            n = out.logits.shape[1]
            yield f"{s.at('forward')}: levels add up to {sum(out.levels)}, but there are {n} positions."
        if not out.levels:
            yield f"{s.at('forward')} returned no levels: the number of positions of each."
    if bad := different(out, again):
        yield f"{s.at('forward')} returned other {', '.join(bad)} for the same pictures in eval mode."


def _shapes(s: Subject, out: Outputs, traits: frozenset[str]) -> Iterator[str]:
    p = out.logits.shape[1] if out.logits.dim() == 3 else out.boxes.shape[1]
    cells = p if "dense" in traits else 0
    wanted = {"logits": [2, p, len(NAMES)], "boxes": [2, p, 4], "points": [cells, 2], "strides": [cells]}
    if out.objectness is not None:
        wanted["objectness"] = [2, p]
    for name, shape in wanted.items():
        if list(found := getattr(out, name).shape) != shape:
            yield f"{s.at('forward')} returned {name} of shape {list(found)}; it must be {shape}."
    pairs = {"objectness": {"objectness", "centerness"}, "distribution": {"box_distribution"}, "features": {"features"}}
    for name, offered in pairs.items():
        has = bool(out.features) if name == "features" else getattr(out, name) is not None
        if has != bool(offered & traits):
            word, verb = " or ".join(sorted(offered)), "lack" if has else "name"
            yield f"{s.at('forward')} returned {'' if has else 'no '}{name}, but traits {verb} {word}."
    if not {"dense", "query", "rois"} & traits:
        yield f"{s.at('traits')}: traits name neither dense nor query: are its positions cells or queries?"
    if s.query != (out.answers is not None):
        yield f"{s.at('forward')}: answers, the number of queries that are detections, is for query detectors alone."


def modes(s: Subject) -> Iterator[str]:
    """Train and eval mode differ only in batch normalisation."""
    detector = s.make()
    with torch.no_grad():
        train, evaluated = still(detector.train())(s.pictures()), detector.eval()(s.pictures())
    if grouped(train, evaluated):  # further groups of queries are there in train mode alone
        train, evaluated = train.answer(), evaluated.answer()
        bad = [k for k, least in (("logits", 1e-5), ("boxes", 1e-3)) if far(train, evaluated, k) > least]
    else:
        bad = different(train, evaluated)
    if bad:
        yield f"{s.at('forward')}: {', '.join(bad)} differ between train and eval mode; student and teacher must agree."


def grouped(train: Outputs, evaluated: Outputs) -> bool:
    """Whether there are more sets of queries in train mode (Group DETR, arXiv 2207.13085)."""
    return train.answers is not None and train.logits.shape[1] > evaluated.logits.shape[1]


def far(a: Outputs, b: Outputs, name: str) -> float:
    """The largest difference in a field."""
    x, y = getattr(a, name), getattr(b, name)
    return float((x - y).abs().max()) if x.shape == y.shape else float("inf")


def precision(s: Subject) -> Iterator[str]:
    """Outputs and losses are float32 under mixed precision, too."""
    detector = s.make().eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, targets = detector(s.pictures()), s.boxes((3, 1))
    for name in FIELDS:
        if (value := getattr(out, name)) is not None and value.dtype != torch.float32:
            yield f"{s.at('forward')} returned {name} as {value.dtype} under mixed precision; call .float()."
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = detector.loss(out, targets, detector.match(out, targets))
    plain = detector.loss(out, targets, detector.match(out, targets))
    for name, loss in found.items():
        value, wanted = float(loss.detach()), float(plain[name].detach())
        if loss.dtype != torch.float32 or abs(value - wanted) > 1e-5 * abs(wanted):
            yield f"{s.at('loss')}: '{name}' is computed in lower precision under mixed precision."


# Classes --------------------------------------------------------------------------------------------------------------


def rows(s: Subject) -> Iterator[str]:
    """class_layers lists every row of every class."""
    detector = s.make()
    detector.grow(["dog", "eel"])
    detector.grow(["fox"])
    found = list(detector.class_layers())
    if not found:
        yield f"{s.at('class_layers')} lists no layer with classes; use ClassConv for the layer that grows."
    state, layers = detector.state_dict(), {r.name.partition(".blocks.")[0] for r in found}
    for kind in ("weight", "bias"):
        spans = sorted((r.first, len(r.tensor)) for r in found if r.name.endswith(kind))
        if found and spans != sorted([(0, 3), (3, 2), (5, 1)] * len(layers)):
            at = s.at("class_layers")
            yield f"{at}: the {kind} rows do not cover the classes 0 to 5 once in each layer: {spans}."
    if missing := [r.name for r in found if r.name not in state]:
        yield f"{s.at('class_layers')} lists {missing[0]}, which is not a tensor of the detector."


def classes(s: Subject) -> Iterator[str]:
    """Only class layers know classes: a row moves the logits of its class alone."""
    detector = lively(s.make(("ant",)))
    detector.grow(["bee", "cow"])
    with torch.no_grad():
        more = grouped(detector.train()(s.pictures()), detector.eval()(s.pictures()))
    outputs = (still(detector.train()) if more else detector.eval())(s.pictures())  # with every group of queries
    logits = outputs.logits
    if isinstance(outputs, RoIOutputs):  # a class has boxes of its own, too
        logits = logits + outputs.class_deltas.sum(3)
    probe = torch.randn(logits.shape[:2], generator=torch.Generator().manual_seed(3))
    named = {n: p for n, p in detector.named_parameters() if p.requires_grad}
    grads = [
        torch.autograd.grad((logits[..., c] * probe).sum(), list(named.values()), retain_graph=True, allow_unused=True)
        for c in range(3)
    ]
    listed = {r.name: r for r in detector.class_layers()}
    for (n, p), *per_class in zip(named.items(), *grads, strict=True):
        moved = torch.stack([torch.zeros_like(p) if g is None else g for g in per_class]) != 0
        if n not in listed:
            each = moved.reshape(3, len(p) if p.dim() else 1, -1).any(2).sum(0)
            if (each == 1).any():
                yield f"{n} moves the logits of one class alone, but class_layers leaves it out: it would not grow."
            continue
        for i in range(len(listed[n].tensor)):
            by = [c for c in range(3) if moved[c, i].any()]
            if by != [listed[n].first + i]:
                yield f"{n}, row {i}, of class {listed[n].first + i}, moves the logits of the classes {by}."


def growth(s: Subject) -> Iterator[str]:
    """Growing keeps old logits and every other output bit-equal."""
    for start in ((), NAMES):
        if s.query and not start:
            continue  # without classes there is nothing to choose queries by
        detector = lively(s.make(start)).eval()
        with torch.no_grad():
            before = detector(s.pictures())
            for names in ([], ["dog"], ["eel", "fox", "gnu", "hen", "ibis"]):
                known = detector.num_classes
                detector.grow(names)
                after = detector(s.pictures())
                yield from _grown(s, detector, before, after, known, names)
                if list(after.logits.shape) != [*before.logits.shape[:2], known + len(names)]:
                    return
                before = after
    yield from _refused(s)


def _grown(
    s: Subject, detector: Detector, before: Outputs, after: Outputs, known: int, names: list[str]
) -> Iterator[str]:
    if detector.class_names[known:] != tuple(names) or after.logits.shape[2] != known + len(names):
        yield (
            f"{s.at('grow')}: {len(names)} classes are added to {known}, but forward gives logits of "
            f"{after.logits.shape[2]} classes; the class layers must be ClassConv, and grow calls super().grow(names)."
        )
    elif not torch.equal(after.logits[..., :known], before.logits):
        yield f"{s.at('forward')}: the logits of known classes change when {len(names)} more are added."
    if isinstance(after, RoIOutputs) and isinstance(before, RoIOutputs):
        # of a region, the box is that of its best class, which may be a new one; each class keeps its own
        pairs = {
            "class_deltas": (after.class_deltas[:, :, :known], before.class_deltas),
            "background": (after.background, before.background),
            "proposals": (after.proposals, before.proposals),
        }
        bad = [k for k, (a, b) in pairs.items() if not torch.equal(a, b)]
        bad += different(after, before, but=("logits", "boxes"))
    else:
        bad = different(after, before, but=("logits",))
    if bad:
        yield f"{s.at('forward')}: {', '.join(bad)} change when classes are added; only new logits may come."


def _refused(s: Subject) -> Iterator[str]:
    detector = s.make()
    try:
        detector.grow(["dog", "ant"])
    except CiodError:
        if detector.class_names != NAMES or detector(s.pictures(1)).logits.shape[2] != len(NAMES):
            yield f"{s.at('grow')} has added classes although it raised an error; check the names first."
        return
    yield f"{s.at('grow')} adds a class that is known already; it must raise CiodError, as Detector.grow does."


def prior(s: Subject) -> Iterator[str]:
    """New classes start at a probability near 0.01."""
    detector = s.make(()).eval()
    detector.grow(NAMES)
    detector.grow(["dog", "eel"])
    with torch.no_grad():
        p = detector(s.pictures()).probability()
    if s.regions:  # the classes of a softmax share it: those that arrive together have 0.01 of background's
        none = 1 - p.sum(2)
        p = torch.stack([new.sum(2) / (none + new.sum(2)) for new in (p[..., :3], p[..., 3:])])
    low, high = float(p.min()), float(p.max())
    if not (low > 0.002 and high < 0.05 and PRIOR / 2 < float(p.mean()) < PRIOR * 2):
        yield f"{s.at('forward')}: new classes start at probabilities of {low:.3g} to {high:.3g}, not near {PRIOR}."


def without_classes(s: Subject) -> Iterator[str]:
    """A detector without classes works, and detects nothing."""
    detector = s.make(()).eval()
    with torch.no_grad():
        out = detector(s.pictures())
    if out.logits.shape[2] != 0 or any(len(d) for d in detector.decode(out)):
        yield f"{s.at('forward')}: without classes there are logits of {out.logits.shape[2]}; there must be none."


# Teachers, files, processes -------------------------------------------------------------------------------------------


def teacher(s: Subject) -> Iterator[str]:
    """A teacher is apart from its student and never changes."""
    student = s.make().train()
    twin = student.frozen()
    own = {t.data_ptr() for t in student.state_dict().values() if t.numel()}
    if shared := [k for k, t in twin.state_dict().items() if t.numel() and t.data_ptr() in own]:
        yield f"{s.at('frozen')}: the copy shares {shared[0]} with the detector; training would change the teacher."
    before = {k: v.clone() for k, v in twin.state_dict().items()}
    train_step(s, student)
    student.grow(["dog"])
    student.eval()
    student.train()
    if twin.training or twin.class_names != NAMES or any(p.requires_grad for p in twin.parameters()):
        yield f"{s.at('frozen')}: the copy is trained or grows with the detector."
    state = twin.state_dict()
    if changed := [k for k, v in before.items() if not torch.equal(v, state[k])]:
        yield f"{s.at('frozen')}: {changed[0]} of the copy changes when the detector is trained."


def model_file(s: Subject) -> Iterator[str]:
    """A model file gives back the detector, which can then be extended."""
    detector = s.make()
    detector.grow(["dog", "eel"])
    train_step(s, detector)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        weights.save_model(path, detector)
        loaded = weights.load(path)
    with torch.no_grad():
        bad = different(loaded(s.pictures()), detector.eval()(s.pictures()))
    if bad:
        yield (
            f"{s.at('forward')}: {', '.join(bad)} differ after a model file is loaded; is there something beside "
            "parameters and buffers, or a setting that super().__init__ does not get?"
        )
    loaded.grow(["fox"])
    if loaded.class_names[-1] != "fox":
        yield f"{s.at('grow')}: a loaded model cannot be extended."


def repetition(s: Subject) -> Iterator[str]:
    """The same seed gives the same weights and the same gradients."""
    one, two = s.make(), s.make()
    state = two.state_dict()
    if bad := [k for k, v in one.state_dict().items() if not torch.equal(v, state[k])]:
        yield f"{s.at('__init__')}: {bad[0]} differs for the same seed (torch.manual_seed)."
        return
    first, second = (_gradients(s, d) for d in (one, two))
    if bad := [k for k in first if not torch.equal(first[k], second[k])]:
        yield f"{s.at('loss')}: the gradient of {bad[0]} differs when the same step is repeated."


def processes(s: Subject) -> Iterator[str]:
    """Two processes with two pictures each learn what one with four does."""
    alone, ranks = _gradients(s, s.make()), Ranks()
    parts: list[dict[str, Tensor]] = []
    for knows in (False, True):
        for rank in (0, 1):
            with ranks.as_rank(rank, knows=knows):
                parts.append(_gradients(s, s.make(), slice(2 * rank, 2 * rank + 2)))
    largest = max((float(g.abs().max()) for g in alone.values() if g.numel()), default=0.0)
    for k, g in alone.items():
        mean = (parts[2].get(k, torch.zeros_like(g)) + parts[3].get(k, torch.zeros_like(g))) / 2
        if g.numel() and float((mean - g).abs().max()) > 1e-4 * largest:
            yield (
                f"{s.at('loss')}: the gradient of {k} differs between one process with four pictures and two with two; "
                "divide by ciod.core.losses.count, never by the length of a batch or a mean over matches."
            )
            return


def _gradients(s: Subject, detector: Detector, part: slice = slice(0, 4)) -> dict[str, Tensor]:
    """The gradients of one step with pictures that have 3, 0, 1 and 2 boxes."""
    t = s.boxes([3, 0, 1, 2], seed=4)
    targets = type(t)(t.boxes[part], t.labels[part], t.valid[part])
    out = still(detector.train())(s.pictures(4)[part])
    summed(detector.loss(out, targets, detector.match(out, targets))).backward()
    return {n: p.grad for n, p in detector.named_parameters() if p.grad is not None}


def onnx(s: Subject) -> Iterator[str]:
    """It can be exported as ONNX, and the graph computes the same."""
    from ciod.exporters.onnx_file import export

    if s.query:
        raise NotChecked("random weights choose queries by rounding; ciod export compares a trained model")
    if not (find_spec("onnx") and find_spec("onnxruntime")):
        raise NotChecked("pip install 'ciod[onnx]'")
    detector = lively(s.make())
    detector.grow(["dog"])
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        try:
            export(detector.eval(), Path(folder) / "model.onnx")
        except (CiodError, RuntimeError, TypeError, torch.onnx.errors.OnnxExporterError) as e:
            yield f"{s.at('forward')} cannot be exported: {str(e).strip().splitlines()[0][:300]}"


CHECKS: dict[str, Check[Subject]] = {
    "outputs": outputs,
    "modes": modes,
    "precision": precision,
    "rows": rows,
    "classes": classes,
    "growth": growth,
    "prior": prior,
    "without classes": without_classes,
    "matches": losses.matches,
    "losses": losses.plain,
    "counted": losses.counted,
    "channels": losses.channels,
    "incomplete": losses.incomplete,
    "waits": losses.waits,
    "order": losses.order,
    "teacher": teacher,
    "model file": model_file,
    "repetition": repetition,
    "processes": processes,
    "onnx": onnx,
}
"""Every check by name."""

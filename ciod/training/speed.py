"""A faster detector and a cheaper teacher: memory layout, folded normalisation, lower precision, shared layers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ciod.core.errors import CiodError
from ciod.detectors.base import FOLDED
from ciod.detectors.packing import Packs
from ciod.detectors.prefix import Prefix
from ciod.detectors.staged import parts
from ciod.detectors.teacher import SideStream, Teacher
from ciod.training import optim
from ciod.training.accumulate import Accumulated
from ciod.training.sync_norm import synchronise

if TYPE_CHECKING:
    from ciod.config.load import Train
    from ciod.core.distributed import World
    from ciod.core.types import Outputs
    from ciod.detectors.base import Detector

CLOSE = 1e-4  # largest relative difference of folded outputs; rounding gives about 1e-6
PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16}


def lay_out(detector: Detector, settings: Train | None = None) -> None:
    """Weights channels last: convolutions run up to a third faster, with the same results except for rounding.

    Args:
        settings: None: whatever is fastest.
    """
    if settings is None or settings.channels_last:
        detector.to(memory_format=torch.channels_last)
    if detector.device.type == "cpu" and torch.get_num_threads() == 1:
        _quick_pointwise(detector)


def _quick_pointwise(detector: Detector) -> None:
    """Runs pointwise convolutions in half the time, on one thread.

    There PyTorch does not use oneDNN for them, for batches below 16, unless they are strided or dilated. A dilation
    sets the distance between the pixels of a kernel, so it has no effect on a kernel of one pixel.
    """
    for m in detector.modules():
        if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1):
            m.dilation = (2, 2)


def prepare(detector: Detector, settings: Train, world: World) -> None:
    """Sets memory layout, frozen parts and normalisation of a detector before it is trained.

    At a learning rate of 0 backbone and neck are frozen, so that no useless gradients are computed.
    """
    lay_out(detector, settings)
    for part, scale in optim.trunk_scales(detector, settings):
        if scale == 0:
            part.requires_grad_(False)
    if settings.sync_norm and world.size > 1:
        synchronise(detector)


def student(detector: Detector, settings: Train, world: World) -> Callable[[Tensor], Outputs]:
    """The forward pass to train: in parts, in several processes and compiled, as the settings say."""
    forward: nn.Module = detector if settings.accumulate == 1 else Accumulated(detector, settings.accumulate)
    if world.size > 1:
        ids = [world.device.index] if world.device.type == "cuda" else None
        forward = DistributedDataParallel(forward, device_ids=ids)
    if not settings.compile:
        return forward
    torch.compiler.reset()  # the graphs of the previous task have another number of classes
    return torch.compile(forward)


def make_teacher(detector: Detector, settings: Train, *, student: Detector | None = None) -> Teacher:
    """The teacher that ``settings.teacher`` asks for, with a frozen copy of ``detector``.

    Args:
        student: its frozen parts may be shared (``shared``), so they are not folded in the teacher.
    """
    frozen = detector.frozen()
    lay_out(frozen, settings)
    if settings.teacher != "exact":
        frozen = fold(frozen, still=frozen_parts(student) if student is not None and settings.share_frozen else 0)
    if settings.compile:
        frozen.compile()
    beside = settings.teacher_stream and frozen.device.type == "cuda"
    return Teacher(
        frozen,
        precision=PRECISION.get(settings.teacher),
        chunks=settings.accumulate,
        stream=SideStream(frozen.device) if beside else None,
    )


def packer(detector: Detector, settings: Train) -> Packs:
    """A copy of ``detector``, whose trunk is frozen, that computes its maps: in eval mode, with folded normalisation
    unless ``settings.teacher`` is ``exact``."""
    copy = detector.frozen()
    if settings.teacher != "exact":
        copy = fold(copy)
    lay_out(copy, settings)
    assert isinstance(copy, Packs)
    return copy


def frozen_parts(detector: Detector) -> int:
    """Number of first parts of the trunk whose output for an image is the same at every step of a task."""
    pieces = parts(detector)
    moving = (i for i, piece in enumerate(pieces) if not all(_still(m) for m in piece))
    return next(moving, len(pieces))


def _still(part: nn.Module) -> bool:
    """Without trainable weights; the loop then keeps its statistics too, unless it is a layer without weights."""
    for m in part.modules():
        chance = isinstance(m, nn.modules.dropout._DropoutNd)
        if chance or (isinstance(m, nn.modules.batchnorm._NormBase) and not m.affine):
            return False
    return not any(p.requires_grad for p in part.parameters())


@contextmanager
def shared(detector: Detector, teacher: Teacher | None, settings: Train) -> Iterator[None]:
    """While a task is trained: layers that are frozen, and bit-equal in the teacher, are computed once per step."""
    depth = 0
    # Parts of a batch are not the same tensors as the batch, and a compiled graph cannot use the shared outputs.
    if teacher is not None and settings.share_frozen and settings.accumulate == 1 and not settings.compile:
        pairs = zip(parts(detector)[: frozen_parts(detector)], parts(teacher.detector), strict=False)
        equal = [all(_equal(a, b) for a, b in zip(mine, theirs, strict=True)) for mine, theirs in pairs]
        depth = [*equal, False].index(False)
    if not depth or teacher is None:
        yield
        return
    teacher.prefix = Prefix(depth)
    try:
        with teacher.prefix.kept_from(detector):
            yield
    finally:
        teacher.prefix = None


def _equal(one: nn.Module, other: nn.Module) -> bool:
    if any(map(_is_folded, other.modules())):
        return False
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


def fold(detector: Detector, *, still: int = 0) -> Detector:
    """A copy in eval mode whose convolutions include the batch normalisation after them.

    A pair is a convolution and the normalisation defined right after it in the same module. That order of definition
    is the order of execution is checked on noise: where outputs differ by more than rounding, nothing is folded. The
    weights of the copy are not those of ``detector``: accessing them by name raises CiodError.

    Args:
        still: number of first parts of the trunk that are not folded.
    """
    folded = detector.frozen()
    apart = {id(m) for piece in parts(folded)[:still] for part in piece for m in part.modules()}
    for module in folded.modules():
        if id(module) in apart:
            continue
        children = list(module.named_children())
        for (conv_name, conv), (norm_name, norm) in itertools.pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and _fit(conv, norm):
                fused = fuse_conv_bn_eval(conv, norm)
                fused.register_state_dict_pre_hook(_refuse)
                setattr(module, conv_name, fused)
                setattr(module, norm_name, nn.Identity())
    folded.eval().requires_grad_(False)  # what replaced a normalisation starts in train mode
    if not same(detector, folded):
        return detector
    folded.folded = any(_is_folded(m) for m in folded.modules())
    return folded


def _refuse(module: nn.Module, prefix: str, keep_vars: bool) -> None:
    """Raises before a folded convolution gives its weights by name, however it was reached."""
    raise CiodError(FOLDED)


def _is_folded(module: nn.Module) -> bool:
    return _refuse in module._state_dict_pre_hooks.values()


def _fit(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> bool:
    return conv.out_channels == norm.num_features and norm.running_mean is not None


@torch.no_grad()
def same(one: Detector, other: Detector) -> bool:
    """Whether two detectors give the same outputs, except for rounding, on a picture of noise."""
    noise = torch.randint(0, 256, (1, 3, 64, 64), generator=torch.Generator().manual_seed(0)).float().to(one.device)
    a, b = one(noise), other(noise)
    pairs = [(a.logits, b.logits), (a.boxes, b.boxes)]
    if a.objectness is not None and b.objectness is not None:
        pairs.append((a.objectness, b.objectness))
    gaps = torch.stack([(x - y).abs().amax() / x.abs().amax().clamp(min=1) for x, y in pairs if x.numel()])
    return bool(gaps.amax() < CLOSE)

"""The weights of a folder of ``transformers`` (``hf:FOLDER``) in and out of a query detector.

Only safetensors are read. ``transformers`` builds the network from a configuration that ``query.configs`` has reduced
to plain values, and translates tensor names of its older versions; nothing in a folder is run or followed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ciod import detectors
from ciod.core.errors import CiodError
from ciod.core.files import is_file
from ciod.core.reading import lfs_hint
from ciod.detectors.base import Detector
from ciod.detectors.layers.class_layers import RankedLinear
from ciod.detectors.parted import Parted
from ciod.detectors.query import configs, hf
from ciod.detectors.query.whole import WholeDetector

_PICKLES = ("pytorch_model.bin", "model.pt", "model.pth")


def file_of(name: str) -> Path:
    """The weights of ``hf:FOLDER``.

    Raises:
        CiodError: there is no such folder, or its weights are not one file of safetensors.
    """
    folder = hf.folder_of(name, weights=True)
    path = folder / hf.WEIGHTS
    if is_file(path):
        return path
    if is_file(folder / f"{hf.WEIGHTS}.index.json"):
        raise CiodError(f"{folder} has its weights in several files; save them in one: max_shard_size='100GB'.")
    pickled = next((n for n in _PICKLES if is_file(folder / n)), None)
    if pickled:
        raise CiodError(
            f"{folder} has its weights in {pickled}, and loading that could run code; save the model once more with "
            "save_pretrained, which writes model.safetensors."
        )
    raise CiodError(f"{folder} has no {hf.WEIGHTS}.")


def build(name: str, classes: Sequence[str] | None = None, *, numbered: bool = False) -> Detector:
    """A detector from ``hf:FOLDER`` with its weights, in eval mode.

    Args:
        classes: class names, in place of those of the folder.
        numbered: a folder without class names is accepted; its classes then get numbered names.

    Raises:
        CiodError: there is no such folder, it is not a detector that ciod reads, or it has no class names.
    """
    path = file_of(name)
    found = hf.describe(f"{configs.PREFIX}{path.parent}")
    if numbered and not classes and not found.rows:
        classes = [f"\0{i}" for i in range(len(found.labels))]
    rows, names = found.names(classes)
    source = f"{configs.PREFIX}{path.parent}"
    detector = detectors.build(names, name=source)
    assert isinstance(detector, WholeDetector)
    fill(detector, detector.tensors_of(_loaded(path, found)), rows)
    detector.lineage = [{"from": path.parent.name, "classes": list(names)}]
    return detector.eval()


def _loaded(path: Path, found: hf.Described) -> Any:
    """The model of ``transformers``, with the tensor names of this version."""
    try:
        raw = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CiodError(f"{path} is not a readable model file ({error}).{lfs_hint(path)}") from error
    config = configs.configuration(found.config, found.labels, str(path))
    kind = getattr(configs.package(), f"{configs.FAMILIES[config.model_type]}ForObjectDetection")
    try:
        with configs.quiet():
            model, report = kind.from_pretrained(None, config=config, state_dict=raw, output_loading_info=True)
    except Exception as error:
        raise configs.refused(str(path), error) from error
    lacking = sorted(k for k in report["missing_keys"] if "num_batches_tracked" not in k)
    if lacking:
        raise CiodError(
            f"{path} does not fit its config.json: {len(lacking)} tensors are not in it, such as {lacking[0]}."
        )
    return model.float()


@torch.no_grad()
def fill(detector: WholeDetector, state: dict[str, Tensor], rows: Sequence[int]) -> None:
    """Puts the tensors of a network of ``transformers`` into a detector whose classes came together.

    Args:
        state: see ``WholeDetector.tensors_of``.
        rows: of its class layers, those of the detector's classes.
    """
    heads = {n.removeprefix("network."): n for n in detector.class_modules()}
    own: dict[str, Tensor] = {}
    for key, value in state.items():
        layer, _, leaf = key.rpartition(".")
        if layer in heads:
            own[f"{heads[layer]}.blocks.0.{leaf}"] = value[list(rows)]
        else:
            own[f"network.{key}"] = value
    for name, layer in detector.class_modules().items():
        if isinstance(layer, RankedLinear):
            own[f"{name}.ranking"] = torch.tensor(len(rows))
    detector.load_state_dict(own)


@torch.no_grad()
def to_transformers(detector: Detector) -> Any:
    """A model of ``transformers`` with the detector's weights and class names.

    Raises:
        CiodError: ``transformers`` has no such network.
    """
    if not isinstance(detector, WholeDetector):
        raise CiodError(
            f"{detector.settings['name']} cannot be exported to transformers, which has no such network; "
            f"{', '.join(sorted(k.model_type for k in detectors.whole()))} can."
        )
    if isinstance(detector, Parted) and len(detector.branches):
        raise CiodError(
            "A detector with branches (freeze_branch) cannot be exported to transformers, which has none. Export it "
            "with onnx=FILE, or extend the model before it with method=pseudo_label, which leaves one network."
        )
    name = detector.settings["name"]
    model = configs.network(configs.configuration(detector.config, detector.class_names, name), name)
    heads = {n.removeprefix("network."): m for n, m in detector.class_modules().items()}
    state = {k.removeprefix("network."): v for k, v in detector.state_dict().items() if k.startswith("network.")}
    detector.separate(model)
    for key, value in detector.tensors_of(model).items():
        layer, _, leaf = key.rpartition(".")
        if layer in heads:
            value.copy_(torch.cat([getattr(block, leaf).detach() for block in heads[layer].blocks]))
        else:
            value.copy_(state[key])
    return model.eval()

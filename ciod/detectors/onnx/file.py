"""Reads an ONNX file as untrusted data.

No code of the file runs in Python. The numbers of bytes, nodes and tensor elements are limited before onnxruntime opens
it, and external weights are read only from its own folder. Custom operators are refused. A run may neither take more
than half of the machine's memory nor last forever.
"""

from __future__ import annotations

import importlib
import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ciod.core.errors import CiodError
from ciod.core.files import is_file, no_model_file
from ciod.detectors.onnx import inputs
from ciod.detectors.onnx.inputs import Picture, Size

Proto: TypeAlias = Any
"""A message of the package onnx, which is optional: a model, graph, node or tensor."""

LARGEST = (1 << 31) - 1  # bytes of a protobuf, weights included
NODES = 100_000
ELEMENTS = 1 << 30  # of one tensor
PATIENCE = 600.0  # seconds of one run
OPSETS = (7, 27)  # onnxruntime reports which of the newest it lacks

_STANDARD = {"", "ai.onnx"}
_RUNTIME = {"ai.onnx.ml", "com.microsoft"}  # onnxruntime has operators of these


@dataclass
class OnnxFile:
    """A file that was read.

    ``content`` is the model with all weights and ``data`` the same as bytes; ``sizes`` are further inputs, by name.
    """

    path: Path
    content: Proto = field(repr=False)
    data: bytes = field(repr=False)
    picture: Picture
    sizes: dict[str, Size]
    metadata: dict[str, str]
    outputs: list[str]
    quantised: bool = False

    @property
    def opset(self) -> int:
        return next(o.version for o in self.content.opset_import if o.domain in _STANDARD)

    @property
    def made_by(self) -> str:
        return " ".join(w for w in (self.content.producer_name, self.content.producer_version) if w)

    def exposing(self, tensors: Sequence[str]) -> bytes:
        """The model with further tensors as outputs, in this order after its own; nothing else is changed."""
        onnx = require("onnx")
        added = onnx.GraphProto(output=[onnx.ValueInfoProto(name=t) for t in tensors if t not in self.outputs])
        # Protobuf messages can be merged by concatenating their bytes: the old part is not even parsed again.
        return self.data + onnx.ModelProto(graph=added).SerializeToString()

    def feed(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """The inputs of a session, from images [n, 3, H, W] float32 with values as the graph expects them."""
        sizes = {name: s.value(len(images), *images.shape[2:]) for name, s in self.sizes.items()}
        return {self.picture.name: self.picture.given(images)} | sizes


def require(package: str) -> Any:
    """The optional package.

    Raises:
        CiodError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise CiodError(f"ONNX models need {package}, which is not installed: pip install 'ciod[onnx]'") from error


def read(path: Path) -> OnnxFile:
    """A file with all its weights.

    Raises:
        CiodError: it is missing, damaged, too large, refers to files outside its folder, has operators that onnxruntime
            lacks, or does not take pictures.
    """
    return of_bytes(path, contents(path))


def of_bytes(path: Path, raw: bytes) -> OnnxFile:
    """Like ``read``, from the bytes of a file."""
    content = parse(path, raw)
    _bounded(path, content)
    # The original bytes are kept if they are complete, so that an extended file begins with them.
    data = content.SerializeToString() if _embed(path, content) else raw
    _known_operators(path, content)
    session = start(path, data, optimised=False)
    picture, sizes = inputs.of_session(path, session.get_inputs())
    sizes = inputs.settled(picture, sizes, lambda feed: run(path, session, None, feed))
    metadata = {p.key: p.value for p in content.metadata_props}
    kinds = {n.op_type for n in content.graph.node}
    quantised = bool(kinds & {"DequantizeLinear", "QLinearConv", "ConvInteger", "DynamicQuantizeLinear"})
    return OnnxFile(path, content, data, picture, sizes, metadata, [o.name for o in content.graph.output], quantised)


def contents(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        CiodError: there is no such file, or it is too large.
    """
    require("onnx")
    if not is_file(path):
        no_model_file(path, (".onnx",))
    if (size := path.stat().st_size) > LARGEST:
        raise CiodError(f"{path} has {size / 1e9:.1f} GB; an ONNX file has at most 2.1 GB.")
    return path.read_bytes()


def parse(path: Path, raw: bytes) -> Proto:
    """The protobuf in the bytes of a file, without external weights.

    Raises:
        CiodError: it is not an ONNX model.
    """
    onnx = require("onnx")
    try:
        content = onnx.load_model_from_string(raw)
    except Exception as error:  # protobuf's DecodeError, whose class depends on the implementation
        raise CiodError(
            f"{path} is not a readable ONNX file ({error}). It may be truncated; use a copy, if there is one."
        ) from error
    if not content.graph.node or not content.opset_import:
        raise CiodError(f"{path} is not an ONNX model: it has no graph.")
    return content


# Bounds ---------------------------------------------------------------------------------------------------------------


def _bounded(path: Path, content: Proto) -> None:
    count, largest = 0, 0
    for graph in _graphs(content):
        count += len(graph.node)
        for tensor in _tensors(graph):
            if any(d < 0 for d in tensor.dims):
                raise CiodError(f"{path} is damaged: the tensor {tensor.name!r} has a negative size.")
            largest = max(largest, math.prod(tensor.dims))
    if count > NODES or largest > ELEMENTS:
        what = f"{count:,} nodes" if count > NODES else f"a tensor of {largest:,} elements"
        raise CiodError(f"{path} has {what}, more than any detector needs; it is not opened.")


def _graphs(content: Proto) -> Iterator[Proto]:
    """The main graph and those inside its nodes (If, Loop, Scan) and inside functions."""
    waiting: list[Any] = [content.graph, *content.functions]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                waiting += [g for g in (attribute.g, *attribute.graphs) if g.node]


def _tensors(graph: Proto) -> Iterator[Proto]:
    yield from getattr(graph, "initializer", ())
    for node in graph.node:
        for attribute in node.attribute:
            yield from _in_attribute(attribute)


def _in_attribute(attribute: Proto) -> Iterator[Proto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors


def _embed(path: Path, content: Proto) -> bool:
    """Puts external weights into the model, so that one file is enough; returns whether there are any."""
    onnx = require("onnx")
    outside = [t for g in _graphs(content) for t in _tensors(g) if t.data_location == onnx.TensorProto.EXTERNAL]
    total = path.stat().st_size
    for tensor in outside:
        entries = {e.key: e.value for e in tensor.external_data}
        file = _beside(path, entries.get("location", ""))
        offset, length = _number(path, entries.get("offset")), _number(path, entries.get("length"))
        length = file.stat().st_size - offset if length is None else length
        total += length
        if total > LARGEST:
            raise CiodError(f"{path} has more than 2.1 GB of weights; a file of that size cannot be extended.")
        with file.open("rb") as f:
            f.seek(offset)
            data = f.read(length)
        if len(data) != length:
            raise CiodError(f"{path} needs {length:,} bytes at {offset:,} of {file.name}, which is shorter.")
        tensor.raw_data = data
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
    return bool(outside)


def _number(path: Path, text: str | None) -> Any:
    """An offset (absent: 0) or a length."""
    if text is None or text.isdigit():
        return 0 if text is None else int(text)
    raise CiodError(f"{path} is damaged: {text[:40]!r} is not a position in a file of weights.")


def _beside(path: Path, location: str) -> Path:
    """The file of weights that a model names, which must be in the model's own folder."""
    file, folder = path.parent / location, path.parent.resolve()
    if not location or Path(location).is_absolute() or not file.resolve().is_relative_to(folder):
        raise CiodError(f"{path} asks for weights in {location!r}, outside its own folder; that is refused.")
    if not is_file(file):
        raise CiodError(f"{path} needs {location} in the same folder; it does not exist.")
    return file


def _known_operators(path: Path, content: Proto) -> None:
    defs = require("onnx").defs
    opset = next((o.version for o in content.opset_import if o.domain in _STANDARD), 0)
    if not OPSETS[0] <= opset <= OPSETS[1]:
        raise CiodError(f"{path} has opset {opset}; {OPSETS[0]} to {OPSETS[1]} can be read. Export it with opset 17.")
    own = {(f.domain, f.name) for f in content.functions}
    for graph in _graphs(content):
        for node in graph.node:
            if (node.domain, node.op_type) in own or node.domain in _RUNTIME:
                continue
            if node.domain not in _STANDARD or not defs.has(node.op_type, ""):
                domain = f" of domain '{node.domain}'" if node.domain else ""
                raise CiodError(
                    f"{path} uses the operator {node.op_type}{domain}, which onnxruntime cannot run. Export the model "
                    "without it; if it is non-maximum suppression, ciod does that itself."
                )


# Sessions -------------------------------------------------------------------------------------------------------------


@cache
def _memory() -> None:
    """Limits the memory of all sessions together to half of the machine's memory."""
    ort = require("onnxruntime")
    try:
        most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):  # Windows
        most = 4 << 30
    info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(info, ort.OrtArenaCfg({"max_mem": most, "arena_extend_strategy": 1}))


def start(
    path: Path,
    content: bytes,
    *,
    optimised: bool = True,
    threads: int = 0,
    level: str | None = None,
    spin: bool = True,
    gpu: int | None = None,
) -> Any:
    """A session on the CPU, or on a GPU.

    Args:
        path: for the message.
        threads: 0: the default of onnxruntime.
        level: of optimisation, by onnxruntime's name for it; None: all or none, as ``optimised`` says.
        spin: threads wait busily for the next run; False: they release the cores.
        gpu: number of the GPU; None: the CPU. Products are float32, never TF32.

    Raises:
        CiodError: onnxruntime does not accept it.
    """
    ort = require("onnxruntime")
    _memory()
    options = ort.SessionOptions()
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.log_severity_level = 4  # its errors are also raised
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    name = level or ("ORT_ENABLE_ALL" if optimised else "ORT_DISABLE_ALL")
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, name)
    providers: list[Any] = ["CPUExecutionProvider"]
    if gpu is not None:
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": gpu, "use_tf32": 0}))
    try:
        return ort.InferenceSession(content, options, providers=providers)
    except Exception as error:  # onnxruntime has a separate class for each kind
        raise CiodError(f"onnxruntime cannot open {path}: {_reason(error)}") from error


def run(path: Path, session: Any, names: Sequence[str] | None, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs of one run.

    Raises:
        CiodError: the run fails, needs more memory than allowed, or takes more than ten minutes.
    """
    options = require("onnxruntime").RunOptions()
    options.log_severity_level = 4
    timer = threading.Timer(PATIENCE, setattr, (options, "terminate", True))
    timer.daemon = True
    timer.start()
    try:
        return session.run(names, feed, options)
    except Exception as error:
        raise CiodError(f"onnxruntime cannot run {path}: {_reason(error)}") from error
    finally:
        timer.cancel()


def run_bound(path: Path, session: Any, binding: Any) -> None:
    """One run whose inputs and outputs are bound.

    Raises:
        CiodError: the run fails, or needs more memory than allowed.
    """
    try:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
    except Exception as error:
        raise CiodError(f"onnxruntime cannot run {path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The part of onnxruntime's message that says why, on one line."""
    text = " ".join(str(error).split())
    text = text.rpartition("Status Message: ")[2][:300]
    if "NOT_IMPLEMENTED" in str(error):
        text += ". Export the model in float32, or with another opset, so that onnxruntime has all its operators."
    if "IR version" in text or ("opset" in text.lower() and "NOT_IMPLEMENTED" not in str(error)):
        text += " Update onnxruntime (pip install -U onnxruntime), or export the model for an older version."
    return text

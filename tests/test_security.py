"""A crafted file never runs: the same canary in every place a file is read."""

from __future__ import annotations

import ast
import pickle
import struct
import zipfile
import zlib
from pathlib import Path

import pytest
import torch

import ciod
from ciod import detectors
from ciod.comparison import settings as comparing
from ciod.comparison import worker
from ciod.config import load as config
from ciod.core.errors import CiodError, DataError
from ciod.core.reading import read_object
from ciod.core.run_log import read_metrics
from ciod.data import formats, images
from ciod.data.scenarios import scenario
from ciod.detectors.files import weights
from ciod.detectors.onnx import file as onnx_file
from ciod.inference import target
from ciod.inference.target import Target
from ciod.report import page, results_file
from ciod.training import checkpoint

SOURCES = sorted(Path(ciod.__file__).parent.rglob("*.py"))


class Canary:
    """Unpickling it creates a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def crafted(canary: Path, kind: str) -> bytes:
    import io

    if kind == "pickle":
        return pickle.dumps(Canary(canary))
    if kind == "torch":
        file = io.BytesIO()
        torch.save({"model": Canary(canary)}, file)
        return file.getvalue()
    return f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{canary}]]\n".encode()


READERS = {
    "model": ("m.safetensors", weights.load),
    "checkpoint": ("m.pth", weights.load),
    "checkpoint .pt": ("m.pt", weights.load),
    "trunk": ("m.pth", lambda p: weights.load_trunk(detectors.build(("a",), name="yolox-pico", size=64), p)),
    "backbone": ("m.pth", lambda p: detectors.build(("a",), name="yolox-r18", size=64, backbone_weights=str(p))),
    "state": ("state.pt", checkpoint.load_state),
    "settings": ("run.yaml", lambda p: config.load(p)),
    "words": ("w", lambda p: config.load(None, [f"data={p.read_bytes().decode('latin1')}"])),
    "scenario": ("s.yaml", lambda p: scenario.read_protocol(str(p))),
    "coco": ("train.json", lambda p: formats.read(p)),
    "yolo": ("data.yaml", lambda p: formats.read(p)),
    "results": ("results.json", lambda p: page.read_results(p.parent)),
    "run": ("run.yaml", lambda p: page.read_run(p.parent)),
    "metrics": ("metrics.jsonl", lambda p: read_metrics(p.parent)),
    "image": ("a.jpg", images.read_image),
    "voc": ("Annotations/a.xml", lambda p: formats.read(p.parents[1])),
    "labelme": ("a.json", lambda p: formats.read(p.parent)),
    "results of another run": ("results.json", results_file.read),
    "comparison": ("c.yaml", lambda p: comparing.opened(p, {}, {})),
    "job of a comparison": ("job.json", lambda p: worker.work(read_object(p))),
    "onnx": ("m.onnx", onnx_file.read),
    "earlier predictions": ("predictions.json", lambda p: target._drawn_before(p.parent)),
    "unfinished predictions": (".unfinished", lambda p: Target(p.parent, [Path("a.jpg")], []).drawn and []),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["pickle", "torch", "yaml"])
@pytest.mark.parametrize("reader", READERS)
def test_nothing_runs(reader, kind, tmp_path):
    canary = tmp_path / "canary"
    name, read = READERS[reader]
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(crafted(canary, kind))
    if reader in ("metrics", "earlier predictions", "unfinished predictions"):
        assert not read(path)
    else:
        with pytest.raises(CiodError):
            read(path)
    assert not canary.exists()


def test_the_canary_sings(tmp_path):
    """Else the test above could not fail."""
    pickle.loads(crafted(tmp_path / "canary", "pickle"))
    assert (tmp_path / "canary").exists()


def test_a_signed_state_with_code_is_refused_too(tmp_path):
    """A checksum shows damage; against an attack the reader protects, because it runs no code from the file."""
    path = tmp_path / "last" / "state.pt"
    checkpoint.save_state(path, {"task": Canary(tmp_path / "canary")})
    with pytest.raises(checkpoint.Damaged, match=r"cannot be read \(UnpicklingError"):
        checkpoint.load_state(path)
    assert zipfile.ZipFile(path).comment.startswith(b"ciod sha256 ") and not (tmp_path / "canary").exists()


def metadata(path: Path, **changed) -> Path:
    """A model file without a checksum whose metadata say something else."""
    import json

    from safetensors.torch import save_file

    meta = {"format": 1, "class_names": ["a"], "detector": {"name": "yolox-pico", "size": 64}, "blocks": [1],
            "lineage": []}  # fmt: skip
    save_file({"x": torch.zeros(1)}, path, metadata={"ciod": json.dumps({**meta, **changed})})
    return path


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"detector": {"name": "/tmp/evil.py:Evil"}}, r"detector is ./tmp/evil\.py:Evil., a place of code, which no"),
        ({"detector": {"name": "yolox-pico", "size": 10**9}}, r"detector\.size must be 32\.\.16384"),
        ({"detector": {"name": "yolox-pico", "evil": 1}}, r"detector settings are unknown"),
        ({"detector": {"size": 64}}, r"detector has no name"),
        ({"class_names": ["a", "a"], "blocks": [2]}, r"a class name appears twice"),
        ({"class_names": "a"}, r"class_names: Input should be a valid list"),
        ({"blocks": [10**6]}, r"blocks have 1000000 classes, but class_names has 1"),
        ({"blocks": [-1]}, r"blocks\.0: Input should be greater"),
        ({"lineage": [3]}, r"lineage\.0: Input should be a valid dictionary"),
        ({"format": 9}, r"format: Input should be 1 or 2"),
        ({"class_names": ["a" * 2000]}, r"class_names\.0: String should have at most 1000"),
    ],
)
def test_metadata_of_models_are_checked(tmp_path, changed, match):
    with pytest.raises(CiodError, match=match):
        weights.load(metadata(tmp_path / "m.safetensors", **changed))


def test_metadata_that_are_too_long_or_no_json(tmp_path, monkeypatch):
    from safetensors.torch import save_file

    from ciod.detectors.files import model_file

    save_file({"x": torch.zeros(1)}, tmp_path / "m.safetensors", metadata={"ciod": "{"})
    with pytest.raises(CiodError, match="its metadata are not JSON"):
        weights.load(tmp_path / "m.safetensors")
    monkeypatch.setattr(model_file, "LONGEST", 10)
    with pytest.raises(CiodError, match="MB of metadata, and at most"):
        weights.load(metadata(tmp_path / "m.safetensors"))


def test_a_bomb_of_pixels_is_not_decoded(tmp_path):
    """A PNG of 60,000 × 60,000 pixels in 100 bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    with pytest.raises(DataError, match=r"more than .* pixels, which may be an attack"):
        images.read_image(tmp_path / "bomb.png")


def calls() -> list[tuple[str, str, ast.Call]]:
    """(file:line, called name, call) of the whole package."""
    return [
        (f"{path.name}:{node.lineno}", ast.unparse(node.func), node)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]


def test_no_reader_that_could_run_code():
    found = calls()
    forbidden = {"pickle.load", "pickle.loads", "yaml.load", "yaml.full_load", "yaml.unsafe_load", "eval", "exec",
                 "torch.hub.load", "marshal.loads", "os.system", "shutil.unpack_archive"}  # fmt: skip
    assert [where for where, name, _ in found if name in forbidden] == []
    assert [where for where, name, _ in found if name.endswith(".extractall")] == [], "members are checked one by one"
    loads = [c for _, name, c in found if name == "torch.load"]
    assert loads, "the rule is about something"
    for call in loads:
        assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in call.keywords)
    for where, name, call in found:
        if name == "np.load":
            assert not any(k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in call.keywords), where
        if name.startswith("subprocess."):
            assert not any(k.arg == "shell" for k in call.keywords), where

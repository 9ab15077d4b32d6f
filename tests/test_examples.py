"""The examples run, the CVAT function and the Label Studio backend against their packages where those are installed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import ciod
from ciod import detectors
from ciod.core.types import Detections
from ciod.data.images import save_image
from ciod.detectors.files.weights import save_model

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A model of two classes, and a picture."""
    folder = tmp_path_factory.mktemp("examples")
    torch.manual_seed(0)
    save_model(folder / "model.safetensors", detectors.build(("cat", "dog"), name="yolox-pico", size=64))
    save_image(folder / "a.png", np.random.default_rng(0).integers(0, 255, (48, 60, 3), dtype=np.uint8))
    return folder


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_cvat_annotates_with_a_model(place):
    cvat = pytest.importorskip("cvat_sdk.auto_annotation", reason="cvat-sdk is not installed")
    from PIL import Image

    function = example("cvat_function").create(str(place / "model.safetensors"), score=0.0)
    assert isinstance(function.spec, cvat.DetectionFunctionSpec)
    assert [(label.name, label.id) for label in function.spec.labels] == [("cat", 0), ("dog", 1)]

    class Context(cvat.DetectionFunctionContext):
        frame_name, conf_threshold, conv_mask_to_poly = "a.png", None, False

    picture = Image.open(place / "a.png")
    shapes = function.detect(Context(), picture)
    wanted = ciod.load(place / "model.safetensors").predict(place / "a.png", score_threshold=0.0)
    assert len(wanted) and len(shapes) == len(wanted)
    for shape, one in zip(shapes, wanted, strict=True):
        assert shape.type.value == "rectangle" and shape.label_id == one.label
        assert np.allclose(shape.points, one.box)
    Context.conf_threshold = 1.0
    assert function.detect(Context(), picture) == []


@pytest.fixture
def served(place, monkeypatch) -> tuple[list, dict]:
    """What Label Studio asks for, and what the model finds there."""
    monkeypatch.setenv("CIOD_MODEL", str(place / "model.safetensors"))
    monkeypatch.setenv("CIOD_SCORE", "0")
    wanted = ciod.load(place / "model.safetensors").predict(place / "a.png", score_threshold=0.0)
    answer = wanted.to_label_studio(60, 48)
    assert len(answer["result"]) == len(wanted) > 0
    return [{"id": 7, "data": {"image": f"/data/local-files/?d={place / 'a.png'}"}}], answer


class Old:
    """The parts of label-studio-ml that the example uses: no ``setup``, and pictures have only an address."""

    def get_local_path(self, url: str, project_dir: str | None = None) -> str:
        return url.partition("?d=")[2]


class New:
    """The same of version 2: storage in the cloud is read by the number of the task."""

    def __init__(self) -> None:
        self.setup()

    def setup(self) -> None: ...

    def get_local_path(self, url: str, project_dir: str | None = None, *, task_id: int | None = None) -> str:
        assert task_id == 7
        return url.partition("?d=")[2]


@pytest.mark.parametrize("base", [Old, New])
def test_label_studio_gets_predictions_of_a_model(served, monkeypatch, base):
    """A stand-in for both versions of the package."""
    module = ModuleType("label_studio_ml.model")
    module.__dict__["LabelStudioMLBase"] = base
    monkeypatch.setitem(sys.modules, "label_studio_ml", ModuleType("label_studio_ml"))
    monkeypatch.setitem(sys.modules, "label_studio_ml.model", module)
    tasks, answer = served
    assert example("label_studio_backend").Ciod().predict(tasks) == [answer]


def test_the_server_of_label_studio_answers_with_predictions(served, tmp_path):
    """The package itself; ``make test-label-studio`` installs it."""
    api = pytest.importorskip("label_studio_ml.api", reason="label-studio-ml is absent: make test-label-studio")
    tasks, answer = served
    client = api.init_app(example("label_studio_backend").Ciod, model_dir=str(tmp_path)).test_client()
    client.post("/setup", json={"project": "1.1", "schema": "<View></View>"})
    found = client.post("/predict", json={"tasks": tasks, "project": "1.1"})
    assert found.status_code == 200 and found.get_json()["results"] == [answer]


def test_a_prediction_of_label_studio_is_in_percent():
    found = Detections([[6, 12, 30, 24]], [0.75], [1], ("cat", "dog"))
    answer = found.to_label_studio(60, 48, from_name="box")
    (result,) = answer["result"]
    assert result["value"] == {
        "x": 10.0, "y": 25.0, "width": 40.0, "height": 25.0, "rotation": 0, "rectanglelabels": ["dog"],
    }  # fmt: skip
    assert result["from_name"] == "box" and result["to_name"] == "image" and answer["score"] == result["score"] == 0.75


def test_sahi_slices_a_large_picture(place, monkeypatch):
    pytest.importorskip("sahi", reason="sahi is absent: pip install 'ciod[sahi]'")
    from PIL import Image

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # SAHI lifts Pillow's limit for everybody
    from sahi.predict import get_prediction, get_sliced_prediction

    CiodModel = example("sahi_model").CiodModel
    model = CiodModel(model_path=str(place / "model.safetensors"), confidence_threshold=0.0, device="cpu")
    assert model.category_mapping == {"0": "cat", "1": "dog"}
    whole = get_prediction(str(place / "a.png"), model).object_prediction_list
    wanted = ciod.load(place / "model.safetensors").predict(place / "a.png", score_threshold=0.0)
    assert len(whole) and len(whole) <= len(wanted)  # SAHI leaves out empty boxes
    best = max(whole, key=lambda one: one.score.value)
    assert best.category.name == wanted[0].name and best.score.value == pytest.approx(wanted[0].score, abs=1e-5)
    assert np.allclose(best.bbox.to_xyxy(), wanted[0].box, atol=1)
    sliced = get_sliced_prediction(
        str(place / "a.png"), model, slice_height=32, slice_width=32, postprocess_match_threshold=0.9, verbose=0
    )
    boxes = np.array([one.bbox.to_xyxy() for one in sliced.object_prediction_list])
    assert len(boxes) and boxes[:, 2].max() > 32 and boxes[:, 0].min() < 28  # moved to their slices' places
    assert boxes[:, 2].max() <= 60 and boxes[:, 3].max() <= 48


def test_fiftyone_gets_two_fields(place, monkeypatch):
    """A stand-in for the package: the conversion is tested, not its app."""
    import sys
    from types import SimpleNamespace

    class Sample(dict):
        def __init__(self, filepath):
            super().__init__(filepath=filepath)

    stand_in = SimpleNamespace(Sample=Sample, Detection=SimpleNamespace, Detections=lambda detections: detections)
    monkeypatch.setitem(sys.modules, "fiftyone", stand_in)
    torch.manual_seed(1)
    more = detectors.build(("cat", "dog", "bird"), name="yolox-pico", size=64)
    save_model(place / "more.safetensors", more)
    (one,) = example("fiftyone_before_after").samples(
        place / "model.safetensors", place / "more.safetensors", place / "a.png", score=0.0
    )
    assert one["filepath"] == str(place / "a.png") and set(one) == {"filepath", "before", "after"}
    wanted = ciod.predict(place / "more.safetensors", place / "a.png", score_threshold=0.0)[place / "a.png"]
    assert len(one["after"]) == len(wanted) and {d.label for d in one["before"]} <= {"cat", "dog"}
    first, box = one["after"][0], wanted.boxes[0]
    shares = [box[0] / 60, box[1] / 48, (box[2] - box[0]) / 60, (box[3] - box[1]) / 48]
    assert np.allclose(first.bounding_box, shares) and first.confidence == pytest.approx(float(wanted.scores[0]))

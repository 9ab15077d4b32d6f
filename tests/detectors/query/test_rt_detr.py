"""What is special about detectors with queries: which places are chosen, what growing keeps, the trunk of another."""

from __future__ import annotations

import builtins
from dataclasses import replace

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from ciod import detectors
from ciod.cli import app
from ciod.config import load as config
from ciod.core.errors import CiodError, ConfigError
from ciod.detectors.files import weights as files
from tests import fixed, paths
from tests.detectors.common import NAMES, SIZE, make, pictures, train_step
from tests.detectors.query.networks import ALL, trained

pytest.importorskip("transformers", reason="transformers is absent: pip install 'ciod[detr]'")
pytest.importorskip("scipy", reason="scipy is absent: pip install 'ciod[detr]'")

WEIGHTS = paths.WEIGHTS / "yolox_nano_coco.pth"


@pytest.mark.parametrize("name", [n for n in ALL if "first_stage" in detectors.traits(n)])
def test_new_rows_choose_nothing_before_they_are_trained(name):
    """Even a new row that likes every place: boxes and old scores are the same to the bit."""
    detector, x = trained(name), pictures()
    with torch.no_grad():
        before = detector(x)
        detector.grow(["dog"])
        for rows in detector.class_layers():
            if rows.first == len(NAMES):
                nn.init.normal_(rows.tensor, std=3, generator=torch.Generator().manual_seed(1))
                if rows.name.endswith("bias"):
                    rows.tensor.fill_(20.0)
        after = detector(x)
        assert torch.equal(after.boxes, before.boxes)
        assert torch.equal(after.logits[..., : len(NAMES)], before.logits)
        assert after.logits[:, -detector.network.config.num_queries :, -1].abs().max() < 1e3, (
            "not masked in the outputs"
        )
        chosen = detector.train().eval()(x)  # as after a task
    assert not torch.equal(chosen.boxes, before.boxes), "once trained, the new row chooses too"


def test_what_chooses_is_kept_in_a_model_file(tmp_path):
    detector, x = trained(), pictures()
    detector.grow(["dog"])
    for rows in detector.class_layers():
        if rows.first == len(NAMES):
            nn.init.constant_(rows.tensor, 5.0)
    files.save_model(tmp_path / "model.safetensors", detector)
    loaded = files.load(tmp_path / "model.safetensors")
    with torch.no_grad():
        assert torch.equal(loaded(x).boxes, detector(x).boxes)
    assert int(loaded.network.enc_score_head.ranking) == len(NAMES)


def test_kept_classes_choose_as_before():
    detector, x = trained(), pictures()
    detector.select([NAMES[0], NAMES[2]])
    with torch.no_grad():
        logits = detector(x).logits
    assert logits.shape[2] == 2 and int(detector.network.enc_score_head.ranking) == 2


def test_a_picture_with_fewer_places_than_queries_has_fewer_answers():
    detector = make("rtdetr-pico").eval()
    with torch.no_grad():
        out = detector(pictures()[:, :, :32, :32])
    assert out.answers == 4 * 4 + 2 * 2 + 1 and out.frame == (32, 32)


def test_decoding_takes_only_the_answers_and_keeps_overlapping_boxes():
    detector = trained()
    with torch.no_grad():
        out = detector(pictures(1))
        found = detector.decode(out, score_threshold=0.0)[0]
        whole = detector.decode(out.answer(), score_threshold=0.0)[0]
    assert len(found) == out.answers, "one label per query, and nothing is suppressed"
    assert (found.boxes == whole.boxes).all() and (found.scores == whole.scores).all()


def test_a_loss_is_the_same_in_any_share_of_the_sets():
    """Every set is matched and summed; the normaliser is the number of boxes of one set."""
    detector = trained()
    out = detector(pictures())
    targets = fixed.boxes_at_random(1, [3, 1], classes=3, size=SIZE)
    whole = detector.loss(out, targets, detector.match(out, targets))
    n = out.answers
    parts = []
    for i in range(out.logits.shape[1] // n):
        own = slice(i * n, (i + 1) * n)
        one = replace(out, logits=out.logits[:, own], boxes=out.boxes[:, own])
        parts.append(detector.loss(one, targets, detector.match(one, targets)))
    for key, loss in whole.items():
        assert float(loss) == pytest.approx(float(sum(p[key] for p in parts)), rel=1e-5), key


@pytest.mark.parametrize("name", [n for n in ALL if n != "rfdetr-pico"])  # whose attention needs longer to settle
def test_steps_on_one_batch_lower_the_loss(name):
    detector = make(name).train()
    targets = fixed.boxes_at_random(1, [1, 1], classes=3, size=SIZE)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-3)
    seen = []
    # DEIMv2's class targets are IoUs, which start near 0: while boxes improve, the class loss first rises.
    for _ in range(60 if name.startswith("deimv2") else 30):
        outputs = detector(pictures())
        loss = torch.stack(list(detector.loss(outputs, targets, detector.match(outputs, targets)).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()
        seen.append(float(loss.detach()))
    assert max(seen[-3:]) < 0.85 * seen[0]


def test_the_trunk_of_yolox_fits_under_a_decoder(tmp_path):
    donor = make("yolox-nano")
    train_step(donor)
    files.save_model(tmp_path / "yolox.safetensors", donor)
    detector = make("rtdetr-csp-pico")
    taken = files.load_fitting(detector, tmp_path / "yolox.safetensors")
    assert set(taken.taken) == {"backbone", "neck"} and set(taken.left) == {"network"}
    with torch.no_grad():
        for a, b in zip(donor.eval()(pictures()).features, detector.eval()(pictures()).features):
            assert torch.equal(a, b)


@pytest.mark.skipif(not WEIGHTS.is_file(), reason=f"{WEIGHTS} is absent; set CIOD_WEIGHTS to run this test")
def test_the_official_checkpoint_gives_its_trunk():
    taken = files.load_fitting(make("rtdetr-csp-pico"), WEIGHTS)
    assert taken.taken == {"backbone": 235, "neck": 165}


@pytest.mark.parametrize("name", ["rtdetr-pico", "rtdetr-csp-pico"])
def test_there_is_no_backbone_to_download(name):
    with pytest.raises(CiodError, match=f"backbone_weights: {name} takes none; write weights=FILE"):
        detectors.build(NAMES, name=name, backbone_weights="imagenet")
    assert detectors.default_backbone(name) is None


# Settings -------------------------------------------------------------------------------------------------------------


def test_the_family_brings_settings_that_can_be_overridden():
    words = ["data=shapes", "split=6+4", "method=pseudo_label"]
    run = config.load(None, [*words, "detector=rtdetr-pico"])
    assert (run.train.clip, run.train.weight_decay, run.eval.nms_iou) == (1.0, 1e-4, 1.0)
    run = config.load(None, [*words, "detector=rtdetr-pico", "clip=0.1"])
    assert run.train.clip == 0.1
    run = config.load(None, [*words, "detector=yolox-pico"])
    assert (run.train.clip, run.eval.nms_iou) == (10.0, 0.65)


@pytest.mark.parametrize("method", ["lwf", "erd", "ilyolox"])
def test_methods_that_compare_positions_say_why_they_cannot(method):
    words = ["data=shapes", "split=6+4", f"method={method}", "detector=rtdetr-pico"]
    match = (
        f"method: {method} needs a detector with dense.*, which rtdetr-pico does not have; .*would do. Its queries "
        "show other objects in the student than in the teacher, .*pseudo_label works on the detections alone"
    )
    with pytest.raises(ConfigError, match=match):
        config.load(None, words)


def test_a_missing_package_is_named_before_anything_is_read(monkeypatch):
    monkeypatch.setattr(detectors, "find_spec", lambda name: None)
    assert detectors.lacking("rtdetr-pico") == "detr" and detectors.lacking("yolox-pico") is None
    assert detectors.lacking("mmdet:a_config") is None
    match = r"detector.name: rtdetr-pico needs transformers and scipy: pip install 'ciod\[detr\]'"
    with pytest.raises(ConfigError, match=match):
        config.load(None, ["data=shapes", "split=6+4", "method=pseudo_label", "detector=rtdetr-pico"])


def test_the_list_of_detectors_names_the_extra(monkeypatch):
    monkeypatch.setattr(detectors, "find_spec", lambda name: None)
    output = CliRunner().invoke(app, ["list", "detectors"], env={"COLUMNS": "200"}).output
    row = next(line for line in output.splitlines() if line.split()[:1] == ["rtdetr-pico"])
    assert row.rstrip().endswith("pip install 'ciod[detr]'")


def test_a_package_that_cannot_be_imported_is_named(monkeypatch):
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.startswith("scipy"):
            raise ImportError("no", name="scipy")
        return real(name, *args, **kwargs)

    monkeypatch.setattr("importlib.import_module", absent)
    with pytest.raises(CiodError, match=r"scipy is not installed, and query detectors need it: pip install 'ciod\[d"):
        detectors.build(NAMES, name="rtdetr-pico")

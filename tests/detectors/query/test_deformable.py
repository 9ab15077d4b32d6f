"""Deformable DETR: outputs and parts of the loss against ``transformers``; learnt queries that no class moves."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from ciod import detectors
from ciod.detectors.files import hf_files
from ciod.detectors.query import configs, deformable
from ciod.detectors.query.deformable import CLASS_WEIGHT, DeformableDETR
from ciod.detectors.query.matching import shares
from ciod.detectors.query.whole import fill_resnet
from tests import fixed
from tests.detectors.common import NAMES, SIZE, make, pictures
from tests.detectors.query.networks import trained
from tests.detectors.query.test_golden import labels

pytest.importorskip("transformers", reason="transformers is absent: pip install 'ciod[detr]'")
pytest.importorskip("scipy", reason="scipy is absent: pip install 'ciod[detr]'")

COUNTS = [3, 0, 2]
PARTS = {"cls": ("loss_ce", CLASS_WEIGHT), "box": ("loss_bbox", 5.0), "giou": ("loss_giou", 2.0)}
KINDS = {
    "refined": {},
    "one step": {"with_box_refine": False},
    "coarser levels": {"num_feature_levels": 5, "position_embedding_type": "learned"},
    "one level": {
        "num_feature_levels": 1,
        "with_box_refine": False,
        "backbone_config": {**deformable.PICO["backbone_config"], "out_indices": [4]},
    },
}


def pair(kind: str) -> tuple[nn.Module, DeformableDETR]:
    """Their whole model, with the paper's cost of a class, and the detector with its weights."""
    torch.manual_seed(3)
    plain = {**deformable.PICO, **KINDS[kind]}
    config = configs.configuration({**plain, "auxiliary_loss": True, "class_cost": 2}, NAMES, "a test")
    model = configs.network(config, "a test")
    DeformableDETR.separate(model)
    for name, p in model.named_parameters():
        if "class_embed" in name or "layers.2" in name or "sampling_offsets.weight" in name:
            nn.init.normal_(p, std=0.3)
    given = {"config": json.dumps(plain), "size": SIZE, "mean": [0.0] * 3, "std": [255.0] * 3, "place": "stretch"}
    detector = DeformableDETR(NAMES, name="hf:deformable_detr", **given)
    hf_files.fill(detector, detector.tensors_of(model), range(len(NAMES)))
    return model.eval(), detector.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_losses_and_gradients_are_those_of_transformers(kind):
    model, detector = pair(kind)
    images, targets = pictures(len(COUNTS)), fixed.boxes_at_random(1, COUNTS, classes=len(NAMES), size=SIZE)
    found = model(pixel_values=images / 255, labels=labels(targets))
    outputs = detector(images)
    assert outputs.logits.shape[1] == 2 * found.logits.shape[1], "one set for each layer of the decoder"
    torch.testing.assert_close(outputs.answer().logits, found.logits, rtol=1e-5, atol=1e-5)
    answers = shares(outputs.answer().boxes, (SIZE, SIZE))
    torch.testing.assert_close(answers, found.pred_boxes, rtol=1e-5, atol=1e-5)

    losses = detector.loss(outputs, targets, detector.match(outputs, targets))
    assert set(losses) == set(PARTS)
    wanted = dict.fromkeys(PARTS, torch.zeros(()))
    for mine, (yours, weight) in PARTS.items():
        wanted[mine] = weight * sum(v for k, v in found.loss_dict.items() if k in (yours, f"{yours}_0"))
        assert float(losses[mine].detach()) == pytest.approx(float(wanted[mine]), rel=1e-5), mine
    sum(wanted.values()).backward()
    sum(losses.values()).backward()
    mine = {k: p.grad for k, p in detector.network.named_parameters()}
    seen = set()
    for key, p in model.named_parameters():
        name = detector.own_name(key)
        if p.grad is None or (kind not in ("one step", "one level") and key.startswith("bbox_embed.")):
            continue
        name = name if name in mine else name.replace(".weight", ".blocks.0.weight").replace(".bias", ".blocks.0.bias")
        seen.add(name)
        torch.testing.assert_close(mine[name], p.grad, rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
    assert len(seen) > 50 and any("class_embed" in n for n in seen)


def test_new_classes_leave_every_old_detection_as_it_is():
    """Even rows that like every query, and after training them: queries are learnt, and no class chooses them."""
    detector, x = trained("ddetr-pico"), pictures()
    with torch.no_grad():
        before = detector(x)
        detector.grow(["dog"])
        for rows in detector.class_layers():
            if rows.first == len(NAMES):
                nn.init.constant_(rows.tensor, 20.0)
        after = detector.train().eval()(x)
    assert torch.equal(after.boxes, before.boxes)
    assert torch.equal(after.logits[..., : len(NAMES)], before.logits)


def test_a_new_network_trains_its_normalisations_and_a_checkpoint_keeps_them():
    assert any(isinstance(m, nn.BatchNorm2d) for m in make("ddetr-pico").modules())
    plain = {k: v for k, v in deformable.PICO.items() if k != configs.TRAINED}
    given = {"config": json.dumps(plain), "size": SIZE, "mean": [0.0] * 3, "std": [255.0] * 3, "place": "stretch"}
    kept = DeformableDETR(NAMES, name="hf:deformable_detr", **given)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in kept.modules())
    random = DeformableDETR(NAMES, name="hf:deformable_detr", backbone_weights="random", **given)
    assert any(isinstance(m, nn.BatchNorm2d) for m in random.modules())
    assert all(p.requires_grad for p in random.parameters())


def test_torchvisions_resnet_has_a_place_in_that_of_transformers():
    import torchvision
    from transformers import ResNetBackbone, ResNetConfig

    torch.manual_seed(0)
    theirs = torchvision.models.resnet50(weights=None)
    for m in theirs.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.running_var, 0.5, 1.5)
            nn.init.normal_(m.running_mean, std=0.1)
    mine = ResNetBackbone(ResNetConfig(out_indices=[2, 3, 4]))
    fill_resnet(mine, theirs)
    x, wanted = torch.randn(1, 3, 64, 64), []
    with torch.no_grad():
        y = theirs.eval().maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        for stage in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
            y = stage(y)
            wanted.append(y)
        for a, b in zip(mine.eval()(x).feature_maps, wanted[1:], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_the_detector_of_the_papers_starts_from_imagenet(monkeypatch):
    """On the meta device, for its size: what is fixed, what is learnt, and what a model file says."""
    from ciod.detectors.query import whole

    assert detectors.default_backbone("ddetr-r50") == "imagenet" and detectors.default_backbone("ddetr-pico") is None
    monkeypatch.setattr(whole, "load_resnet", lambda net, depth, weights: weights == "imagenet")
    monkeypatch.setattr(whole, "fill_resnet", lambda backbone, net: None)
    with torch.device("meta"):
        found = {w: detectors.build(NAMES, name="ddetr-r50", backbone_weights=w) for w in ("imagenet", "random")}
        again = detectors.build(NAMES, **found["imagenet"].settings)
    for detector in (found["imagenet"], again):
        assert detector.settings == {"name": "ddetr-r50", "size": 640, "frozen": True}
        assert not any(isinstance(m, nn.BatchNorm2d) for m in detector.modules())
        fixed_parts = {n.split(".")[4] for n, p in detector.named_parameters() if not p.requires_grad}
        assert fixed_parts == {"embedder", "stages"}
    assert not found["random"].settings["frozen"] and all(p.requires_grad for p in found["random"].parameters())

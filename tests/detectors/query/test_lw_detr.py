"""LW-DETR and RF-DETR: outputs, losses and gradients against ``transformers``, whose losses are right in train mode."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ciod import detectors
from ciod.core.errors import CiodError
from ciod.detectors.files import hf_files
from ciod.detectors.query import configs, lw_detr
from ciod.detectors.query.matching import shares
from tests import fixed
from tests.detectors.common import NAMES, SIZE, bn_eval, make, pictures
from tests.detectors.query.test_golden import labels

pytest.importorskip("transformers", reason="transformers is absent: pip install 'ciod[detr]'")
pytest.importorskip("scipy", reason="scipy is absent: pip install 'ciod[detr]'")

COUNTS = [3, 0, 2]
PARTS = {"cls": ("loss_ce", 1.0), "box": ("loss_bbox", 5.0), "giou": ("loss_giou", 2.0)}
PLAIN = {"lwdetr-pico": lw_detr.PICO, "rfdetr-pico": lw_detr.RF_PICO}


def pair(name: str) -> tuple[nn.Module, lw_detr.LWDETR]:
    torch.manual_seed(3)
    model = configs.network(configs.configuration(PLAIN[name], NAMES, "a test"), "a test")
    for key, p in model.named_parameters():
        if any(part in key for part in ("class_embed", "query_feat", "sampling_offsets.weight")):
            nn.init.normal_(p, std=0.3)
        if "reference_point" in key or "bbox_embed.layers.2" in key:
            nn.init.normal_(p, std=0.1)
    detector = make(name)
    assert isinstance(detector, lw_detr.LWDETR)
    hf_files.fill(detector, detector.tensors_of(model), range(len(NAMES)))
    bn_eval(detector.train())
    return bn_eval(model.train()), detector


@pytest.mark.parametrize("name", PLAIN)
def test_outputs_losses_and_gradients_are_those_of_transformers(name):
    model, detector = pair(name)
    images, targets = pictures(len(COUNTS)), fixed.boxes_at_random(1, COUNTS, classes=len(NAMES), size=SIZE)
    found = model(pixel_values=images / 255, labels=labels(targets))
    outputs = detector(images)
    queries, groups = outputs.answers or 0, 3
    assert outputs.logits.shape[1] == groups * 3 * queries, "two layers and the encoder, in each group"
    each, units = (v.unflatten(1, (groups, 3, queries)) for v in (outputs.logits, shares(outputs.boxes, (SIZE, SIZE))))
    torch.testing.assert_close(each[:, :, 0].flatten(1, 2), found.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(units[:, :, 0].flatten(1, 2), found.pred_boxes, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(each[:, :, 2].flatten(1, 2), found.enc_outputs_class, rtol=1e-4, atol=1e-4)

    losses = detector.loss(outputs, targets, detector.match(outputs, targets))
    for mine, (yours, weight) in PARTS.items():
        wanted = weight * sum(float(v.detach()) for k, v in found.loss_dict.items() if k.startswith(yours))
        assert float(losses[mine].detach()) == pytest.approx(wanted, rel=1e-5), mine
    sum(losses.values()).backward()
    found.loss.backward()
    theirs = {k: p.grad for k, p in detector.tensors_of(Named(model)).items()}
    for key, p in detector.network.named_parameters():
        wanted = theirs[key.replace(".blocks.0", "")]
        torch.testing.assert_close(p.grad, wanted, rtol=2e-3, atol=2e-4, msg=lambda m, key=key: f"{key}: {m}")


class Named:
    """A model whose state is its parameters themselves."""

    def __init__(self, model: nn.Module):
        self.model = model

    def state_dict(self):
        return dict(self.model.named_parameters())


@pytest.mark.parametrize("name", PLAIN)
def test_in_eval_mode_there_is_the_first_group_alone(name):
    _, detector = pair(name)
    with torch.no_grad():
        many = detector(pictures())
        one = detector.eval()(pictures())
    assert many.answers == one.answers and many.logits.shape[1] == 3 * one.logits.shape[1]
    torch.testing.assert_close(many.logits[:, : one.logits.shape[1]], one.logits, rtol=1e-5, atol=1e-5)
    targets = fixed.boxes_at_random(1, [2, 1], classes=len(NAMES), size=SIZE)
    alone = detector.loss(one, targets, detector.match(one, targets))
    assert all(v.isfinite() for v in alone.values())


def test_layers_that_answer_nothing_are_not_trained():
    """DDP would wait for their gradients."""
    plain = {**lw_detr.RF_PICO, "backbone_config": {**lw_detr.RF_PICO["backbone_config"], "out_indices": [1, 2]}}
    plain["backbone_config"] = {**plain["backbone_config"], "use_mask_token": True}
    model = configs.network(configs.configuration(plain, NAMES, "a test"), "a test")
    network = make("rfdetr-pico").inner(model)
    frozen = {n for n, p in network.named_parameters() if not p.requires_grad}
    assert any("layer.2." in n for n in frozen) and any("mask_token" in n for n in frozen)
    assert not any("layer.1." in n or "projector" in n for n in frozen)


def test_a_side_is_a_multiple_of_the_windows():
    with pytest.raises(CiodError, match="size=112: lwdetr-pico takes a multiple of 32 pixels"):
        detectors.build(NAMES, name="lwdetr-pico", size=112)
    assert detectors.build(NAMES, name="rfdetr-pico", size=112).input.size == 112
    base = {"backbone_config": {"model_type": "rf_detr_dinov2"}}
    assert configs.multiple(base) == 56 and configs.multiple({"backbone_config": {"model_type": "lw_detr_vit"}}) == 64


def test_its_decoder_takes_no_queries_of_another():
    detector = make("lwdetr-pico").eval()
    with torch.no_grad():
        out = detector(pictures())
    assert "given_queries" not in detector.traits
    with pytest.raises(CiodError, match="lwdetr-pico takes no queries of another detector: query_kd and sikd cannot"):
        detector.decode_at(out, out.boxes, out.boxes)

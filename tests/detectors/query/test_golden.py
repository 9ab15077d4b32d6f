"""RT-DETR and RT-DETRv2 against the models and losses of ``transformers`` with the same weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ciod.detectors.query import configs, rt_detr
from ciod.detectors.query.matching import shares
from tests import fixed
from tests.detectors.common import NAMES, SIZE, make, pictures

pytest.importorskip("transformers", reason="transformers is absent: pip install 'ciod[detr]'")
pytest.importorskip("scipy", reason="scipy is absent: pip install 'ciod[detr]'")

COUNTS = [3, 0, 2]
PARTS = {"cls": "loss_vfl", "box": "loss_bbox", "giou": "loss_giou"}


def theirs(family: str) -> nn.Module:
    """Their whole model, with boxes and scores that differ from query to query."""
    torch.manual_seed(3)
    config = configs.configuration({**rt_detr.PICO, "model_type": family}, NAMES, "a test")
    model = configs.network(config, "a test")
    for name, p in model.named_parameters():
        if "class_embed" in name or "score_head" in name or "layers.2" in name:
            nn.init.normal_(p, std=0.3)
    return model.eval()


def ours(name: str, model: nn.Module):
    """The detector with their weights; its class layers have one block."""
    detector = make(name).eval()
    state = {}
    for key, value in model.model.state_dict().items():
        head, _, leaf = key.rpartition(".")
        of_class = head.endswith("enc_score_head") or ".class_embed." in f".{head}."
        state[f"network.{head}.blocks.0.{leaf}" if of_class else f"network.{key}"] = value
    missing, unexpected = detector.load_state_dict(state, strict=False)
    assert not unexpected and missing == ["network.enc_score_head.ranking"]
    return detector


def labels(targets) -> list[dict[str, Tensor]]:
    unit = shares(targets.boxes, (SIZE, SIZE))
    return [{"class_labels": y[ok], "boxes": u[ok]} for u, y, ok in zip(unit, targets.labels, targets.valid)]


@pytest.mark.parametrize(("name", "family"), [("rtdetr-pico", "rt_detr"), ("rtdetrv2-pico", "rt_detr_v2")])
def test_outputs_losses_and_gradients_are_those_of_transformers(name, family):
    model = theirs(family)
    detector = ours(name, model)
    images, targets = pictures(len(COUNTS)), fixed.boxes_at_random(1, COUNTS, classes=len(NAMES), size=SIZE)
    found = model(pixel_values=images / 255, labels=labels(targets))
    outputs = detector(images)
    queries = found.logits.shape[1]
    assert outputs.answers == queries and outputs.logits.shape[1] == 3 * queries
    torch.testing.assert_close(outputs.answer().logits, found.logits, rtol=1e-5, atol=1e-5)
    answers = shares(outputs.answer().boxes, (SIZE, SIZE))
    torch.testing.assert_close(answers, found.pred_boxes, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(outputs.logits[:, -queries:], found.enc_topk_logits, rtol=1e-5, atol=1e-5)

    losses = detector.loss(outputs, targets, detector.match(outputs, targets))
    for mine, yours in PARTS.items():
        wanted = sum(v for k, v in found.loss_dict.items() if k.startswith(yours))
        assert float(losses[mine]) == pytest.approx(float(wanted), rel=1e-5), mine
    whole = torch.stack(list(losses.values())).sum()
    assert float(whole) == pytest.approx(float(found.loss), rel=1e-5)

    found.loss.backward()
    whole.backward()
    mine = dict(detector.network.named_parameters())
    for key, p in model.model.named_parameters():
        key = key if key in mine else key.replace(".weight", ".blocks.0.weight").replace(".bias", ".blocks.0.bias")
        torch.testing.assert_close(mine[key].grad, p.grad, rtol=1e-3, atol=1e-4, msg=lambda m, key=key: f"{key}: {m}")

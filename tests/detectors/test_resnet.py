"""The stem pools before ReLU: values and gradients are those of the reference order, bit for bit."""

from __future__ import annotations

import torch
import torchvision

from ciod.detectors.layers.backbones import ResNet


def test_pooling_before_relu_changes_nothing():
    torch.manual_seed(0)
    ours, net = ResNet(18), torchvision.models.resnet18(weights=None)
    reference = torch.nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
    reference[0].load_state_dict(ours.stem[0].state_dict())
    images, weigh = torch.randn(2, 3, 64, 64), torch.randn(2, 64, 16, 16)
    found = []
    for stem in (reference, ours.stem):
        out = stem.train()(images)
        (out * weigh).sum().backward()
        found.append([out, stem[0].weight.grad, stem[1].weight.grad, stem[1].bias.grad])
    assert (found[0][0] == 0).any(), "ReLU had something to do"
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))

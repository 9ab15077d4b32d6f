"""The golden cases of GFL, ERD and ilYOLOX with MMDetection's heads in the place of ours: the same tests."""

from __future__ import annotations

import pytest

from tests.golden import heads, test_erd, test_gfl, test_ilyolox
from tests.mmdet import common


def gfl(monkeypatch, names):
    detector = common.make("gfl", names)

    def assemble(cls, reg, strides, *_):
        return detector.assemble(cls, reg)

    monkeypatch.setattr(heads, "assemble", assemble)
    monkeypatch.setattr(test_erd, "assemble", assemble)
    monkeypatch.setattr(test_gfl, "GFL", lambda *_, **__: detector)
    return detector


@pytest.mark.parametrize("file", heads.files("gfl"))
def test_gfl_itself(file, monkeypatch):
    gfl(monkeypatch, test_gfl.NAMES)
    test_gfl.test_agrees_with_the_published_head(file)


@pytest.mark.parametrize("file", heads.files("erd"))
def test_gfl_loss_of_only_new_classes(file, monkeypatch):
    gfl(monkeypatch, test_gfl.NAMES)
    test_gfl.test_loss_of_only_new_classes(file)


@pytest.mark.parametrize("file", heads.files("erd"))
def test_erd_itself(file, monkeypatch):
    test_erd.test_agrees_with_the_published_code(file, gfl(monkeypatch, test_erd.OLD + test_erd.NEW))


@pytest.mark.parametrize("file", [pytest.param(f, id=f.name) for f in test_ilyolox.FILES] or [test_ilyolox.ABSENT])
def test_ilyolox_itself(file, monkeypatch):
    detector = common.make("yolox", test_ilyolox.NAMES)
    monkeypatch.setattr(test_ilyolox, "assemble", lambda cls, reg, obj: detector.assemble(cls, reg, obj))
    test_ilyolox.test_agrees_with_the_published_code(file, detector)

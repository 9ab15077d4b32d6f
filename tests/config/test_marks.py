"""A setting says itself which results it changes; run folders on disk hold what follows from it."""

from __future__ import annotations

from ciod.config.load import Run, load
from ciod.config.marks import LATER_TASKS, NO_RESULT, marked
from ciod.core.limits import LARGEST
from ciod.detectors.files.model_file import Metadata
from ciod.runs import environment


def test_what_changes_no_result():
    """A setting that is taken from this list makes the fingerprints of finished runs differ from those of today."""
    assert marked(Run, NO_RESULT) == {
        "out", "log", "first", "resume", "allow", "device", "upper_bound", "effort", "train.workers",
        "train.picture_cache", "train.keep_freed", "train.log_every", "train.eval_every", "train.save_every",
        "train.save_minutes",
    }  # fmt: skip


def test_what_changes_nothing_of_the_first_task():
    assert marked(Run, LATER_TASKS) == {
        "method", "memory", "pool", "train.lr_later", "train.joint_epochs", "train.teacher", "train.share_frozen",
        "train.teacher_stream",
    }  # fmt: skip
    flat = environment.fingerprint(load(None, ["data=shapes", "split=6+4", "epochs=[3, 4]", "memory=5", "out=x"]))
    assert "out" not in flat and flat["memory.size"] == 5 and flat["method.name"] == "feature_replay"
    first = environment.first_task(flat)
    assert first["train.epochs"] == 3 and not any(k.startswith(("method", "memory", "pool")) for k in first)
    assert "train.lr" in first and "train.lr_later" not in first


def test_every_size_that_trains_can_be_read_again():
    size = load(None, ["data=shapes", "split=6+4", f"size={LARGEST}"]).detector.size
    about = {"format": 2, "class_names": ["a"], "detector": {"name": "yolox-pico", "size": size}, "blocks": [1]}
    assert Metadata.model_validate(about).detector["size"] == LARGEST

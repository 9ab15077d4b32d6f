"""Each sentence of ``ciod check`` about a detector, by the page's detector with one thing broken."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ciod import contract, detectors
from ciod.contract import detector as checks
from ciod.contract import report
from ciod.contract.material import Subject
from ciod.core.errors import CiodError
from ciod.core.user_code import UserCodeError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding-a-detector.md"
RESPOND = "        corner, stride, levels = grid(features, STRIDES)\n"
LAST = "        return Outputs(logits, boxes, point, stride, features=features, levels=levels)"
LOGITS = "        logits = flatten([self.cls(x) for x in features])\n"
MATCH = "        return atss(outputs, targets)"
LABEL = "        label = targets.labels.gather(1, matches.target)\n"


def without(part: str) -> str:
    """Masks that do not know a part of the targets."""
    return (
        "        import dataclasses as d\n"
        f"        supervision = L.supervise(outputs, d.replace(targets, {part}=None), matches)\n"
    )


CLS = '            "cls": L.masked_sum(cls.sum(2), in_class_loss(matches, supervision)) / n,\n'
BOX = '            "box": 2 * L.masked_sum(box, supervision.counted) / n,\n'
REG = "        self.reg = nn.Conv2d(width, 4, 1)\n"
MASKED = "            cls = cls * supervision.channels\n"
SETTINGS = '{"name": name, "size": input_spec.size}'
FROZEN = ("    def match(", "    def frozen(self):\n        return self\n\n    def match(")
NO_FOX = "    def grow(self, names):\n        super().grow([n for n in names if n != 'fox'])\n\n"
FOUND = "        found = atss(outputs, targets)\n        "


def page() -> str:
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert code
    return code[1]


def write(folder: Path, *changes: tuple[str, str]) -> str:
    text = page()
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (folder / "plain.py").write_text(text, encoding="utf-8")
    return f"{folder / 'plain.py'}:Plain"


def found(folder: Path, check: str, *changes: tuple[str, str]) -> list[str]:
    name = write(folder, *changes)
    return report.sentences_of(checks.CHECKS[check], Subject(name), name, "detector")


def after(last: str) -> tuple[str, str]:
    """Code between the outputs and their return."""
    return LAST, LAST.replace("return", "out =") + "\n        " + last + "\n        return out"


def matched(line: str) -> tuple[str, str]:
    """Code between the matches and their return."""
    return MATCH, FOUND + line


BROKEN: dict[str, list[tuple[list[tuple[str, str]], str]]] = {
    "outputs": [
        (
            [("Input(size=size or 416", "Input(size=416")],
            r"Plain\.__init__ \(plain\.py, line \d+\): size=64 is given, but",
        ),
        ([(SETTINGS, '{"name": name}')], r"the settings lack size=64; a model file would be loaded with another size"),
        (
            [(LAST, "        return logits")],
            r"Plain\.respond \(plain\.py, line \d+\) returned a Tensor; return Outputs",
        ),
        ([after("out.boxes = out.boxes[..., :2]")], r"returned boxes of shape \[2, 84, 2\]; it must be \[2, 84, 4\]"),
        ([after("out.boxes = out.boxes.double()")], r"returned boxes as torch\.float64; Outputs are float32"),
        ([after("out.boxes = out.boxes / 0")], r"returned boxes that are not finite, for pictures at random"),
        ([after("out.levels = (1, 2)")], r"levels add up to 3, but there are 84 positions"),
        ([after("out.levels = ()")], r"returned no levels: the number of positions of each"),
        ([after("out.boxes = out.boxes + torch.rand(1)")], r"returned other boxes for the same pictures in eval mode"),
        ([after("out.features = []")], r"returned no features, but traits name features"),
        ([after("out.objectness = logits.sum(2)")], r"returned objectness, but traits lack centerness or objectness"),
        ([('{"dense", "features"}', '{"features"}')], r"traits name neither dense nor query"),
        ([after("out.answers = 3")], r"answers, the number of queries that are detections, is for query detectors"),
    ],
    "modes": [([after("out.boxes = out.boxes + self.training")], r"boxes differ between train and eval mode")],
    "precision": [
        (
            [(LOGITS, "        logits = torch.cat([self.cls(x).flatten(2).mT for x in features], 1)\n")],
            r"returned logits as torch\.bfloat16 under mixed precision; call \.float\(\)",
        ),
        (
            [(CLS, CLS + '            "more": (outputs.logits[0] @ outputs.logits[0].mT).mean(),\n')],
            r"'more' is computed in lower precision",
        ),
    ],
    "rows": [
        (
            [("ClassConv(width, len(class_names))", "nn.Conv2d(width, len(class_names), 1)")],
            r"lists no layer with classes",
        ),
        (
            [
                (
                    "    def match(",
                    "    def class_layers(self):\n        yield from [*super().class_layers()][:-1]\n\n    def match(",
                )
            ],
            r"the bias rows do not cover the classes 0 to 5 once in each layer: \[\(0, 3\), \(3, 2\)\]",
        ),
        (
            [
                (
                    "    def match(",
                    "    def class_layers(self):\n        from dataclasses import replace\n"
                    "        yield from (replace(r, name='x.' + r.name) for r in super().class_layers())\n\n"
                    "    def match(",
                )
            ],
            r"lists x\.cls\.blocks\.0\.weight, which is not a tensor of the detector",
        ),
    ],
    "classes": [
        (
            [
                (REG, REG + "        self.shift = nn.Parameter(torch.zeros(3))\n"),
                (LOGITS, LOGITS + "        logits = logits + (self.shift if logits.shape[2] == 3 else 0)\n"),
            ],
            r"shift moves the logits of one class alone, but class_layers leaves it out",
        ),
        (
            [(LOGITS, LOGITS + "        logits = logits + logits.mean(2, keepdim=True)\n")],
            r"cls\.blocks\.0\.weight, row 0, of class 0, moves the logits of the classes \[0, 1, 2\]",
        ),
    ],
    "growth": [
        (
            [(LOGITS, LOGITS + "        logits = logits + logits.shape[2]\n")],
            r"the logits of known classes change when 1 more",
        ),
        (
            [after("out.boxes = out.boxes + logits.shape[2]")],
            r"boxes change when classes are added; only new logits may",
        ),
        (
            [
                (
                    "    def match(",
                    "    def grow(self, names):\n        self.class_names += tuple(names)\n\n    def match(",
                )
            ],
            r"Plain\.grow \(plain\.py, line \d+\): 1 classes are added to 0, but forward gives logits of 0 classes",
        ),
        (
            [
                (
                    "    def match(",
                    "    def grow(self, names):\n"
                    "        super().grow([n for n in names if n not in self.class_names])\n\n"
                    "    def match(",
                )
            ],
            r"adds a class that is known already; it must raise CiodError",
        ),
        (
            [
                (
                    "    def match(",
                    "    def grow(self, names):\n"
                    "        super().grow([n for n in names if n not in self.class_names])\n"
                    "        super().grow([n for n in names if n == 'ant' and len(self.class_names) == 4])\n\n"
                    "    def match(",
                )
            ],
            r"has added classes although it raised an error; check the names first",
        ),
    ],
    "prior": [
        (
            [(LOGITS, LOGITS + "        logits = logits * 0\n")],
            r"start at probabilities of 0\.5 to 0\.5, not near 0\.01",
        )
    ],
    "without classes": [
        (
            [
                (
                    LOGITS,
                    LOGITS + "        logits = logits if logits.shape[2] else logits.new_zeros(*logits.shape[:2], 1)\n",
                )
            ],
            r"without classes there are logits of 1; there must be none",
        ),
    ],
    "matches": [
        (
            [(MATCH, "        return outputs")],
            r"Plain\.match \(plain\.py, line \d+\) returned a Outputs; return Matches",
        ),
        (
            [matched("found.iou = found.iou[:, :1]\n        return found")],
            r"shapes that do not belong together: .*'iou': \[2, 1\]",
        ),
        (
            [matched("found.valid &= False\n        return found")],
            r"finds no position for boxes of an eighth to a half",
        ),
        (
            [matched("found.positive = ~found.positive\n        return found")],
            r"positive does not mark the positions of the",
        ),
        (
            [matched("found.target = found.target * 0 + 2\n        return found")],
            r"matches a position with a box that is only padding",
        ),
        ([matched("found.iou = found.iou + 2\n        return found")], r"returned iou outside 0\.\.1"),
        (
            [matched("found.ignored = found.positive\n        return found")],
            r"marks positions as ignored that are matched",
        ),
        (
            [matched("found.positive[:, 0] |= ~found.valid.any()\n        return found")],
            r"matches positions in pictures without boxes",
        ),
    ],
    "losses": [
        (
            [(LABEL, LABEL + "        return {}\n")],
            r"Plain\.losses \(plain\.py, line \d+\) returned \{\}; return \{\"cls\"",
        ),
        ([(LABEL, LABEL + "        return 3\n")], r"returned int; return \{\"cls\""),
        ([(BOX, BOX.replace(" / n,", ".item() / float(n),"))], r"'box' is not a scalar tensor; take the sum or mean"),
        ([(BOX, BOX.replace(" / n,", " / n.double(),"))], r"'box' is torch\.float64; losses are float32"),
        ([(BOX, BOX.replace(" / n,", " / (n * 0),"))], r"'box' is not finite"),
        ([(BOX, "")], r"returned no 'box': methods use the losses cls and box by name"),
        (
            [(BOX, BOX + "            **({} if matches.valid.any() else {'more': n * 0}),\n")],
            r"returned other names for other boxes: cls, box, more",
        ),
        ([(BOX, BOX.replace(" / n,", " / n + 1,"))], r"'box' is not 0 although no picture has a box"),
        ([(CLS, CLS.replace(" / n,", " / n * 1e9,"))], r"without boxes the losses are huge"),
        (
            [(REG, REG + "        self.more = nn.Conv2d(1, 1, 1)\n")],
            r"leaves more\.weight out when pictures have \(3, 1\) boxes",
        ),
        (
            [(BOX, BOX.replace(" / n,", " / n + (0 * outputs.boxes).sum().sqrt(),"))],
            r"gradient that is not finite when pictures",
        ),
    ],
    "counted": [
        (
            [(LABEL, "        supervision = L.supervise(outputs, targets, matches)\n" + LABEL)],
            r"'cls' does not follow counted; multiply it with the mask",
        ),
        (
            [(BOX, BOX.replace("supervision.counted", "matches.valid"))],
            r"'box' does not follow counted: .* when no match counts",
        ),
        ([(BOX, BOX + '            "obj": n,\n')], r"'obj' changes with counted; objectness uses every match"),
    ],
    "channels": [
        (
            [(MASKED, "            pass\n")],
            r"cls\.blocks\.0\.weight gets a gradient for a class that channels leaves out",
        ),
        ([(MASKED, "            cls = cls * 0\n")], r"no class gets a gradient when channels leaves some out"),
    ],
    "incomplete": [
        (
            [
                (
                    LABEL,
                    without("background") + LABEL,
                )
            ],
            r"a picture without labels \(targets\.background\) is learnt as background",
        ),
        (
            [
                (
                    LABEL,
                    without("known") + LABEL,
                )
            ],
            r"a class that is not labelled in a picture \(targets\.known\) is learnt as background",
        ),
        (
            [
                (
                    LABEL,
                    without("doubtful") + LABEL,
                )
            ],
            r"positions of doubtful boxes \(targets\.doubtful\) get a gradient of the class loss",
        ),
    ],
    "waits": [
        (
            [(MATCH, "        float(outputs.boxes.max())\n" + MATCH)],
            r"each step waits for the device: line \d+ \(float\(…\)\)\. Keep",
        ),
        (
            [(LABEL, LABEL + "        torch.nonzero(matches.valid)\n")],
            r"each step waits for the device: .*nonzero",
        ),
        (
            [(LABEL, LABEL + "        outputs.logits.index_put((matches.positive,), outputs.boxes.sum())\n")],
            r"each step waits for the device: a mask as an index",
        ),
    ],
    "order": [
        (
            [(BOX, BOX + '            "more": targets.valid[0].float().sum() + 0 * outputs.boxes.sum(),\n')],
            r"'more' is .*, and .* when the same pictures come in another",
        ),
    ],
    "teacher": [
        ([FROZEN], r"the copy shares .* with the detector; training would change"),
        ([FROZEN], r"the copy is trained or grows with the detector"),
        ([FROZEN], r"of the copy changes when the detector is trained"),
    ],
    "model file": [
        ([("    def match(", NO_FOX + "    def match(")], r"Plain\.grow .*: a loaded model cannot be extended"),
        (
            [
                (
                    "    def match(",
                    "    def grow(self, names):\n        super().grow(names)\n\n    def match(",
                ),
                after(
                    "out.boxes = out.boxes * (2 if getattr(self, 'seen', 0) else 1)\n        self.seen = self.training"
                ),
            ],
            r"boxes differ after a model file is loaded; is there something beside parameters and buffers",
        ),
    ],
    "repetition": [
        (
            [(REG, REG + "        import random\n        nn.init.constant_(self.reg.weight, random.random())\n")],
            r"reg\.weight differs for the same seed \(torch\.manual_seed\)",
        ),
        (
            [(BOX, BOX.replace(" / n,", " / n * __import__('random').random(),"))],
            r"the gradient of .* differs when the same step is",
        ),
    ],
    "processes": [
        (
            [("        n = L.count(supervision.counted)\n", "        n = supervision.counted.sum().clamp(min=1)\n")],
            r"differs between one process with four pictures and two with two; divide by ciod\.core\.losses\.count",
        ),
    ],
    "onnx": [
        (
            [after("out.boxes = out.boxes + torch.linalg.svdvals(images[0, 0].float()).sum()")],
            r"respond .* cannot be exported: .*svdvals",
        )
    ],
}
CASES = [(check, changes, match) for check, cases in BROKEN.items() for changes, match in cases]


@pytest.mark.parametrize(("check", "changes", "match"), CASES, ids=[f"{c}-{i}" for i, (c, _, _) in enumerate(CASES)])
def test_what_breaks_is_reported(tmp_path, check, changes, match):
    if check == "onnx":
        pytest.importorskip("onnxruntime", reason="onnxruntime is absent: pip install 'ciod[onnx]'")
    sentences = found(tmp_path, check, *changes)
    assert any(re.search(match, s) for s in sentences), sentences


def test_every_check_is_broken_by_something():
    assert set(BROKEN) == set(checks.CHECKS)


def test_the_pages_detector_keeps_the_contract(tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is absent: pip install 'ciod[onnx]'")
    result = contract.check(write(tmp_path))
    assert not result.broken, "\n".join(result.lines())
    assert result.lines()[-1].endswith("plain.py:Plain: It keeps the contract.")
    assert {c["state"] for c in result.content()} == {"kept"}
    assert len([line for line in page().splitlines() if line]) < 70


def test_the_report_of_a_broken_one(tmp_path):
    name = write(tmp_path, (BOX, BOX.replace(" / n,", " / n + 1,")))
    result = contract.check(name, onnx=False)
    broken = {c["name"] for c in result.content() if c["state"] == "broken"}
    assert result.broken and "losses" in broken and "outputs" not in broken
    assert "not checked  It can be exported as ONNX, and the graph computes the same" in result.lines()
    assert "             - onnx=false" in result.lines()
    assert result.lines()[-1].endswith(f"{len(broken)} checks of 20 broken.")


def test_exceptions_are_sentences(tmp_path):
    (sentence,) = found(tmp_path, "matches", (MATCH, "        return targets.nothing"))
    assert re.search(r"detector .*plain\.py:Plain: AttributeError: .* in match \(.*plain\.py, line \d+\)", sentence)
    (sentence,) = found(
        tmp_path, "matches", (MATCH, "        from ciod.core.errors import CiodError\n        raise CiodError('no')")
    )
    assert sentence == "ciod refuses it: no"
    broken = ("    def match(", "    def class_layers(self):\n        yield 3\n\n    def match(")
    (sentence,) = found(tmp_path, "rows", broken)
    assert sentence.startswith("ciod cannot work with what it returns: AttributeError: 'int' object has no attribute")


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("plain.py", r"check: name the class, too: ciod check .*plain\.py:Class"),
        ("no.py:Plain", r"check: there is no file .*no\.py; write ciod check"),
        ("plain.py:Plan", r"check: .*plain\.py has no class 'Plan'; did you mean 'Plain'"),
        ("plain.py:Plain:x", r"there is no variant 'x'"),
        ("other.py:Other", r"check: Other of .*other\.py derives neither from ciod\.Detector nor from ciod\.Method"),
    ],
)
def test_a_wrong_name_of_a_class(tmp_path, name, match):
    write(tmp_path)
    (tmp_path / "other.py").write_text("class Other:\n    pass\n")
    with pytest.raises(CiodError, match=match):
        contract.check(f"{tmp_path / name}")


def test_a_detector_that_cannot_be_used_at_all(tmp_path):
    with pytest.raises(UserCodeError, match="there is no trait 'dens'"):
        contract.check(write(tmp_path, ('{"dense", "features"}', '{"dens"}')))


def test_queries_are_not_exported_by_the_check():
    name = next((n for n in detectors.available() if "query" in detectors.traits(n)), "")
    with pytest.raises(report.NotChecked, match="random weights choose queries by rounding"):
        list(checks.onnx(Subject(name)))


def test_without_onnx(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    result = report.run("x", "detector", {"onnx": checks.onnx}, Subject(write(tmp_path)), {})
    assert result.checks[0].sentences == ["pip install 'ciod[onnx]'"] and result.checks[0].state == "not checked"

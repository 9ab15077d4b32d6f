"""``ciod check FILE.py:Class``: whether a detector or a method of the user keeps the contract, in sentences.

The checks are generators of sentences about what breaks. Those of a detector also run in the tests of ciod's own.
"""

from __future__ import annotations

from ciod.contract.report import Report, run
from ciod.core import user_code
from ciod.core.errors import CiodError
from ciod.core.files import is_file

__all__ = ["Report", "check"]


def check(name: str, *, size: int = 64, onnx: bool = True) -> Report:
    """Runs every check on a class in a file. The file is run.

    Args:
        name: ``FILE.py:Class``, a detector or a method; of a detector also ``FILE.py:Class:VARIANT``.
        size: side of the pictures in pixels.
        onnx: whether a detector is also exported.

    Raises:
        CiodError: the file or the class cannot be used at all.
    """
    from ciod.contract import detector, method
    from ciod.contract.material import Subject
    from ciod.detectors import own
    from ciod.detectors.base import Detector

    file, cls, _ = own.parts(name)
    if not cls:
        raise CiodError(f"check: name the class, too: ciod check {file}:Class")
    if not is_file(file):
        raise CiodError(f"check: there is no file {file}; write ciod check PATH/FILE.py:Class")
    found = user_code.class_of(file, cls, object, kind="check")
    if issubclass(found, Detector):
        own.find(name)
        left_out = {} if onnx else {"onnx": "onnx=false"}
        return run(name, "detector", detector.CHECKS, Subject(name, size), left_out)
    from ciod import methods
    from ciod.methods.base.method import Method

    if not issubclass(found, Method):
        raise CiodError(f"check: {cls} of {file} derives neither from ciod.Detector nor from ciod.Method.")
    chosen = method.Subject.of(name, methods.find(name), size)
    return run(name, "method", method.CHECKS, chosen, {})

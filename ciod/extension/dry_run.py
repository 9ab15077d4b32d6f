"""``ciod extend … --dry-run``: what an extension would do, from its settings, the model and the annotations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ciod.core import terminal
from ciod.core.distributed import World, pick_device
from ciod.core.plural import counted
from ciod.core.user_code import user_errors
from ciod.detectors import own
from ciod.extension import effort, mixing, onnx_model, prepare, write
from ciod.extension.settings import Extend
from ciod.runs import environment, resume


def plan(settings: Extend) -> tuple[dict[str, Any], list[str]]:
    """What ``ciod extend … --dry-run`` returns with ``--json``, and the same for the terminal. No picture is looked at,
    nothing is trained and nothing is written.

    Raises:
        CiodError: what the extension would refuse before it looks at a picture.
    """
    s = settings
    out, world = Path(s.out), World(device=pick_device(s.device))
    saved, notes = resume.saved_state(
        s, lambda state: (environment.fingerprint(s), state["settings"]), "extend", model_of=write.model_of
    )
    if saved is None:
        write.refuse_result(out)
    detector = onnx_model.open_model(s)
    read = prepare.read(s, detector, world)
    names, measured = read.names, read.measured
    if saved is None:
        prepare.check_room(out, detector)
    prepare.adapt(detector, names, s, world)
    name, method = prepare.choose_method(s, detector, parent=names.parent)
    train, test = measured.task.train, measured.task.test
    chosen = prepare.plan(detector, (name, method), measured, whole=read.folder.whole)
    chosen = prepare.resumed(effort.Plan(**saved["plan"]), s, world) if saved else chosen
    own_images = max(1, chosen.batch - mixing.beside(measured, method, chosen.batch))
    steps = chosen.epochs * -(-len(train) // own_images)
    by_auto = " (chosen by auto)" if s.method.get("name", "auto") == "auto" and names.parent is None else ""
    lines = [
        *(f"warning: {line}" for line in [*notes, *measured.data_warnings()]),
        *read.folder.notes,
        *onnx_model.lines(detector),
        *names.sentences(),
        *(read.known.sentences() if read.known else []),
        *measured.problems(),
        *measured.negatives.sentences(method.learns_background),
        f"method: {name}{by_auto}",
        *chosen.why,
        f"{counted(steps, 'step')} on {counted(len(train), 'image')} with {counted(len(train.labels), 'box')}; "
        f"measured on {counted(len(test), 'image')}",
        _old_classes(s, measured),
        _afterwards(s, out, saved),
    ]
    content = {
        "out": str(out), "new": list(names.new), "taught": list(names.taught), "old": list(names.old), "method": name,
        "images": len(train), "boxes": len(train.labels), "test_images": len(test), "epochs": chosen.epochs,
        "steps": steps, "batch": chosen.batch, "lr": chosen.lr, "size": chosen.size, "why": chosen.why,
    }  # fmt: skip
    return content, lines


def show(settings: Extend) -> dict[str, Any]:
    """Prints the plan and returns it as JSON-ready values. Raises as ``plan``."""
    with user_errors(str(settings.method.get("name", ""))), own.faults(settings.detector):
        content, lines = plan(settings)
    console = terminal.console()
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
    return content


def _old_classes(s: Extend, measured: Any) -> str:
    """How it is measured what is kept of them."""
    if measured.old is not None:
        how = f"AP before and after, on {counted(len(measured.old), 'image')} of old_data"
    else:
        pool = " and those of the pool" if measured.pool is not None else ""
        how = f"agreement of old and new model on the new images{pool}"
    least = f"; below min_retention={s.min_retention:g} no model is written" if s.min_retention else ""
    return f"old classes: {how}{least}"


def _afterwards(s: Extend, out: Path, saved: dict[str, Any] | None) -> str:
    if saved is None:
        return f"nothing was trained and {out} was not created"
    if saved["task"] == write.TASKS:
        return f"nothing was trained: {out} is finished"
    done = saved["fit"]["done"] if "fit" in saved else 0
    return f"nothing was trained; the extension in {out} would be resumed at step {done + 1}"

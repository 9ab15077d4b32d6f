"""Whether an extension keeps the old classes well enough, and how much of the step is taken where it does not."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ciod.core.errors import CiodError
from ciod.extension import tradeoff

if TYPE_CHECKING:
    from ciod.detectors.base import Detector
    from ciod.extension.measure import Judged, Measure

KEEP_BY_DEFAULT = 0.98  # what method=auto asks of a method that moves old weights
NO_ARBITER = "The arbiter between the branches is dropped: its statistics are of the weights before this extension."


class NotKept(CiodError):
    """``min_retention`` was not reached; nothing was overwritten."""

    exit_code = 3


@dataclass
class Verdict:
    """The measurements of an extended detector, and what is written of it."""

    judged: Judged
    short: bool  # less is kept than was asked for
    share: float = 1.0  # of the step from the old weights to the new, of the best trade-off
    mixtures: list[tradeoff.Mixture] = field(default_factory=list)  # empty: no trade-off was looked for
    mixed: dict[str, Tensor] | None = None  # the weights of the best trade-off


def reach(
    before: Detector, detector: Detector, measured: Measure, *, wanted: float | None, auto: bool
) -> tuple[Verdict, list[str]]:
    """Measures the extended detector, and the trade-offs where it keeps too little.

    Args:
        wanted: least share of the old classes; None: any.
        auto: the method was chosen by ciod, so the detector takes the best trade-off; else it is left as it is.

    Returns:
        The verdict, and warnings.
    """
    least = wanted if wanted is not None else (KEEP_BY_DEFAULT if auto else None)
    verdict = Verdict(measured.judge(before, detector), False)
    verdict.short = least is not None and value_of(verdict.judged) < least
    if not verdict.short or not tradeoff.moved(before.state_dict(), detector.state_dict()):
        return verdict, []
    verdict.mixtures = tradeoff.scan(before, detector, lambda m: measured.brief(before, m))
    verdict.share = tradeoff.best(verdict.mixtures, least).share
    verdict.mixed = tradeoff.mix(before.state_dict(), detector.state_dict(), verdict.share)
    if not auto:
        return verdict, []
    detector.load_state_dict(verdict.mixed)
    verdict.judged = measured.judge(before, detector)
    verdict.short = value_of(verdict.judged) < (least or 0.0)
    return verdict, [
        f"The new weights kept less than {least:.0%} of the old classes; {verdict.share:.0%} of the step is taken "
        "(chosen on the validation images, so their AP looks slightly better than it is)."
    ]


def value_of(judged: Judged) -> float:
    """Retention; where nothing is known, nothing can be said to be lost."""
    return 1.0 if judged.retention.value is None else judged.retention.value


def not_kept(verdict: Verdict, wanted: float, out: Path) -> str:
    """Why no model is written."""
    text = f"min_retention: {value_of(verdict.judged):.1%} of the old classes is kept, less than {wanted:.1%}; "
    text += "no model is written."
    if verdict.mixtures:
        chosen = tradeoff.best(verdict.mixtures, wanted)
        kept = "–" if chosen.kept is None else f"{chosen.kept:.1%}"
        learnt = "–" if chosen.learnt is None else f"{chosen.learnt:.1%}"
        text += (
            f" The best trade-off, {chosen.share:.0%} of the way from the old weights to the new, keeps {kept} and "
            f"reaches {learnt} AP50 on what was taught: it is {out / 'tradeoff.safetensors'}."
        )
    return text

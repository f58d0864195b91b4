"""The steps of an algorithm, and which of them may follow which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dipo.errors import UserError


@dataclass(frozen=True)
class Step:
    """One step that `algo.steps` may name."""

    unit: str | None = None
    """Granularity of what it takes one after the other; None where it looks at the network as a whole."""
    trains: bool = False
    """Whether it trains roundings or scales."""
    fp_input_prob: float = 0.0
    """Probability that an activation keeps its float value, where nothing else is asked."""
    never_after: tuple[tuple[str, str], ...] = ()
    """Steps that cannot come before this one, each with the reason."""


_LEARNED = ("adaround", "brecq", "qdrop")
_AGAIN = tuple((name, "it would round the float weights once more and forget what was found") for name in _LEARNED)
_TUNED = (("tune", "it would undo what was tuned end to end"),)
_FLOAT = "it changes the float network that {} has quantized already"
_PRUNED = "it takes weights away that {} has made up for"

STEPS: dict[str, Step] = {
    "equalize": Step(
        never_after=tuple(
            (name, _FLOAT.format(name)) for name in ("update_bn", "sparsify", "bias_correction", *_LEARNED, "tune")
        )
    ),
    "sparsify": Step(
        unit="layer",
        never_after=tuple((name, _PRUNED.format(name)) for name in ("update_bn", "bias_correction", *_LEARNED, "tune")),
    ),
    "update_bn": Step(
        unit="layer",
        never_after=(
            ("bias_correction", "it sets the channel means itself, and the correction would be lost"),
            *_TUNED,
        ),
    ),
    "bias_correction": Step(unit="layer", never_after=_TUNED),
    "adaround": Step(unit="layer", trains=True, never_after=(*_AGAIN, *_TUNED)),
    "brecq": Step(unit="block", trains=True, never_after=(*_AGAIN, *_TUNED)),
    "qdrop": Step(unit="block", trains=True, fp_input_prob=0.5, never_after=(*_AGAIN, *_TUNED)),
    "tune": Step(unit="network", trains=True),
    "analyze": Step(),
}
"""By name."""


def check_order(steps: Sequence[str]) -> None:
    """Looks for steps that cannot follow those before them.

    Raises:
        UserError: A step comes twice, or undoes or spoils what an earlier one did.
    """
    for index, name in enumerate(steps):
        before = steps[:index]
        if name in before:
            raise UserError(f"algo.steps: {name} comes twice, leave one of them out")
        if "analyze" in before:
            raise UserError(f"algo.steps: {name} after analyze: the analysis would not show it, put analyze last")
        for other, reason in STEPS[name].never_after:
            if other in before:
                raise UserError(f"algo.steps: {name} after {other}: {reason}, put {name} before it or leave it out")


def reconstruction_of(steps: Sequence[str]) -> str | None:
    """The step among them that learns the rounding; None where there is none."""
    return next((name for name in steps if name in _LEARNED), None)

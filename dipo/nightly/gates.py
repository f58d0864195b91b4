"""Gates: the limits that a job must keep, and their outcomes."""

from __future__ import annotations

from dataclasses import dataclass

from dipo.nightly.settings import GateConfig


@dataclass(frozen=True)
class GateOutcome:
    """The outcome of one gate of one job."""

    gate: str
    """Name of its option, such as `max_top1_drop`."""
    limit: float
    value: float | None
    """The job's value; None where it is not known."""
    passed: bool
    sentence: str
    """The measured value and the limit, in words."""


def judge(
    gate: GateConfig, *, fp32: float | None, deployed: float | None, cosine: float | None, seconds: float
) -> tuple[GateOutcome, ...]:
    """Judge every gate that is set; one that cannot be judged has failed.

    Args:
        gate: The job's gates.
        fp32: Top-1 of the float network, in per cent.
        deployed: Top-1 of the deployed network, in per cent.
        cosine: Cosine of the deployed network's worst output with the float network's.
        seconds: The job's, from its start to its end.
    """
    outcomes = []
    if gate.max_top1_drop is not None:
        # Differences of per cents carry dust of the last bits: 91.4 - 90.4 is above 1.
        drop = None if fp32 is None or deployed is None else round(fp32 - deployed, 9)
        told = "no labels to measure it with" if drop is None else f"{drop:.2f} points ({fp32:.2f} to {deployed:.2f})"
        passed = drop is not None and drop <= gate.max_top1_drop
        sentence = f"top-1 drop: {told}, at most {gate.max_top1_drop:g} allowed"
        outcomes.append(GateOutcome("max_top1_drop", gate.max_top1_drop, drop, passed, sentence))
    if gate.min_cosine is not None:
        told = "not measured" if cosine is None else f"{cosine:.6g}"
        passed = cosine is not None and cosine >= gate.min_cosine
        sentence = f"cosine: {told}, at least {gate.min_cosine:g} wanted"
        outcomes.append(GateOutcome("min_cosine", gate.min_cosine, cosine, passed, sentence))
    if gate.max_minutes is not None:
        minutes = seconds / 60
        passed = minutes <= gate.max_minutes
        sentence = f"time: {minutes:.2f} minutes, at most {gate.max_minutes:g} allowed"
        outcomes.append(GateOutcome("max_minutes", gate.max_minutes, minutes, passed, sentence))
    return tuple(outcomes)

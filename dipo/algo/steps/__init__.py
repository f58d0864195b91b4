"""The steps that `algo.steps` may name: ours listed once, others' announced as entry points of `dipo.steps`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dipo.algo.step import FloatStep, Step
from dipo.algo.steps.adaround import AdaRound
from dipo.algo.steps.analyze import Analyze
from dipo.algo.steps.bias_correction import BiasCorrection
from dipo.algo.steps.brecq import Brecq
from dipo.algo.steps.equalize import Equalize
from dipo.algo.steps.gptq import Gptq
from dipo.algo.steps.qdrop import QDrop
from dipo.algo.steps.sparsify import Sparsify
from dipo.algo.steps.tune import Tune
from dipo.algo.steps.update_bn import UpdateBatchNorm
from dipo.errors import UserError
from dipo.registry import Registry
from dipo.section import Section

_OWN: tuple[type[Step], ...] = (
    Equalize,
    Sparsify,
    UpdateBatchNorm,
    BiasCorrection,
    Gptq,
    AdaRound,
    Brecq,
    QDrop,
    Tune,
    Analyze,
)

STEPS: Registry[type[Step]] = Registry("step", {step.name: step for step in _OWN}, group="dipo.steps")
"""All steps by name."""

Entry = str | Mapping[str, Any]
"""An entry of a list of steps: a name, or a mapping of one name to options of that step alone."""


def name_of_entry(entry: Entry) -> str:
    """Return the name of the step in an entry."""
    return entry if isinstance(entry, str) else next(iter(entry))


def make_steps(entries: Sequence[Entry], cfg: Section) -> list[Step]:
    """Make the steps of a list, in its order.

    Args:
        entries: Entries of the list.
        cfg: Section with the options that the entries leave out.

    Raises:
        UserError: An option of an entry or the order of the steps is wrong.
    """
    check_order([name_of_entry(entry) for entry in entries])
    return [
        STEPS[name_of_entry(entry)].configured(cfg, {} if isinstance(entry, str) else next(iter(entry.values())) or {})
        for entry in entries
    ]


def check_order(names: Sequence[str]) -> None:
    """Check that each step can follow those before it.

    Raises:
        UserError: A step comes twice, or undoes or spoils what an earlier one did.
    """
    for index, name in enumerate(names):
        before = names[:index]
        if name in before:
            raise UserError(f"algo.steps: {name} comes twice, leave one of them out")
        if Analyze.name in before:
            raise UserError(f"algo.steps: {name} after analyze: the analysis would not show it, put analyze last")
        if issubclass(STEPS[name], FloatStep):
            for other in before:
                if not issubclass(STEPS[other], FloatStep):
                    raise UserError(
                        f"algo.steps: {name} after {other}: it changes the float network that {other} has quantized "
                        f"already, put {name} before it or leave it out"
                    )
        for other, reason in STEPS[name].never_after.items():
            if other in before:
                raise UserError(f"algo.steps: {name} after {other}: {reason}, put {name} before it or leave it out")

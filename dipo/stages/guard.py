"""The guard over the whole network: what a step made goes on only where held-out samples say that it is better.

Units are guarded where they are solved (`dipo.algo.unit_training`, `dipo.algo.bias_correction`): there a step pays for
no unit that it spoils. The network is guarded besides, for units that are better each may be worse together.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dipo.algo.held_out import held_out_samples
from dipo.algo.judgement import Judgement, squared_error
from dipo.algo.simulate import SimulateBatches, Simulated
from dipo.algo.step import Step
from dipo.data.samples import Picked
from dipo.graph.plan import QuantizedModel
from dipo.report.report import Note, UnitRow
from dipo.run import REPORT
from dipo.stages.context import Context

log = logging.getLogger("dipo")

NAMED_UNITS = 3
"""Number of units that a note names."""


class NetworkGuard:
    """The guard of a job; it remembers the last error, for the next step begins where the last one ended."""

    def __init__(self, context: Context) -> None:
        """Find the held-out samples; nothing runs yet."""
        self.context = context
        self.held_out = held_out_samples(len(context.loaded.data.calib))
        self._known: tuple[QuantizedModel, dict[str, float]] | None = None

    def judge(self, step: Step, before: QuantizedModel, after: QuantizedModel) -> Judgement | None:
        """Return the verdict on a step; None where there are too few samples to hold any out.

        Args:
            step: The step.
            before: The network in front of it.
            after: The network behind it.
        """
        if not self.held_out:
            return None
        errors, own = self._errors(before), self._errors(after)
        judged = Judgement.of(errors, own)
        self._known = (after, own) if judged.kept else (before, errors)
        log.info(
            "%s on %d held-out samples: %+.2f dB, %s", step.name, len(self.held_out), judged.gain_db,
            "kept" if judged.kept else "taken back",
        )  # fmt: skip
        self.context.events.emit(
            "step_judged",
            step=step.name,
            samples=len(self.held_out),
            gain_db=round(judged.gain_db, 3),
            kept=judged.kept,
        )
        return judged

    def notes(self, step: Step, judged: Judgement | None, rows: Sequence[UnitRow]) -> list[Note]:
        """Return what the report says of a step.

        Args:
            step: The step.
            judged: The verdict on it.
            rows: The units that it went over.
        """
        num_samples = len(self.context.loaded.data.calib)
        if judged is None:
            samples = "one sample" if num_samples == 1 else f"{num_samples} samples"
            what = f"with {samples} none is held out, nobody can tell whether anything was gained"
            return [Note(step.name, f"{what}: give more samples")]
        where = f"nothing was gained on {len(self.held_out)} held-out samples"
        if not judged.kept:
            return [Note(step.name, f"{where} ({judged.gain_db:+.2f} dB): the network is kept as it was before it")]
        back = [row.name for row in rows if row.kept is False]
        if not back:
            return []
        named = ", ".join(back[:NAMED_UNITS]) + (f" and others, see units in {REPORT}" if back[NAMED_UNITS:] else "")
        total = sum(row.kept is not None for row in rows)
        return [Note(step.name, f"{where} in {len(back)} of {total} units, which are kept as they were: {named}")]

    def _errors(self, quantized: QuantizedModel) -> dict[str, float]:
        """Return the sum of the squared errors of each of the network's outputs on the held-out samples, by name."""
        if self._known is not None and self._known[0] is quantized:
            return self._known[1]
        shared, samples = self.context.share(quantized), Picked(self.context.loaded.data.calib, self.held_out)
        parts = self.context.over_samples(
            lambda batches: SimulateBatches(batches, samples, shared, 0), title="judge", num_samples=len(samples)
        )
        return {
            name: squared_error(*(np.concatenate(each) for each in zip(*_outputs(parts, name), strict=True)))
            for name in parts[0].fp_outputs
        }


def _outputs(parts: Sequence[Simulated], name: str) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    return [(part.fp_outputs[name], part.q_outputs[name]) for part in parts]

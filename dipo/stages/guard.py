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
from dipo.algo.judgement import TOLERATED_DB, Judgement, squared_error
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
        num_samples = len(context.loaded.data.calib)
        held_out = held_out_samples(num_samples)
        self.samples = held_out or tuple(range(num_samples))
        """Indices of the samples that judge: where none is held out, those that the steps are fitted to, on which at
        least no step may lose."""
        number = "1 sample" if num_samples == 1 else f"{num_samples} samples"
        self.where = f"{len(held_out)} held-out samples" if held_out else f"the {number} that it was fitted to"
        self.doubt = (
            "" if held_out else f"with {number} none is held out, give more to know whether anything was gained"
        )
        self._known: tuple[QuantizedModel, dict[str, float]] | None = None

    def judge(self, step: Step, before: QuantizedModel, after: QuantizedModel) -> Judgement:
        """Return the verdict on a step.

        Args:
            step: The step. What is no guarded one is kept whatever the verdict.
            before: The network in front of it.
            after: The network behind it.
        """
        errors, own = self._errors(before), self._errors(after)
        judged = Judgement.of(errors, own)
        stays = judged.kept or not step.guarded
        self._known = (after, own) if stays else (before, errors)
        log.info(
            "%s on %s: %+.2f dB, %s", step.name, self.where, judged.gain_db, "kept" if stays else "taken back"
        )  # fmt: skip
        self.context.events.emit(
            "step_judged", step=step.name, samples=len(self.samples), gain_db=round(judged.gain_db, 3), kept=stays
        )
        return judged

    def notes(self, step: Step, judged: Judgement, rows: Sequence[UnitRow]) -> list[Note]:
        """Return what the report says of a step.

        Args:
            step: The step.
            judged: The verdict on it.
            rows: The units that it went over.
        """
        back = [row.name for row in rows if row.kept is False]
        total = sum(row.kept is not None for row in rows)
        what = []
        if not step.guarded:
            loses = judged.gain_db < -TOLERATED_DB
            what += [f"the network is {-judged.gain_db:.1f} dB worse behind it on {self.where}"] if loses else []
        elif not judged.kept and total and len(back) == total and judged.gain_db == 0:
            what += [f"no unit gained anything on {self.where}: the network is as it was before it"]
        elif not judged.kept:
            gain = f"{judged.gain_db:+.2f} dB"
            what += [f"nothing was gained on {self.where} ({gain}): the network is kept as it was before it"]
        elif back:
            named = ", ".join(back[:NAMED_UNITS]) + (
                f" and others, see units in {REPORT}" if back[NAMED_UNITS:] else ""
            )
            units = f"{len(back)} of {total} units, which are kept as they were: {named}"
            what += [f"nothing was gained on {self.where} in {units}"]
        elif self.doubt:
            what += [self.doubt]
        return [Note(step.name, each) for each in what]

    def _errors(self, quantized: QuantizedModel) -> dict[str, float]:
        """Return the sum of the squared errors of each of the network's outputs on the samples that judge, by name."""
        if self._known is not None and self._known[0] is quantized:
            return self._known[1]
        return output_errors(self.context, quantized, self.samples, title="judge")


def output_errors(
    context: Context, quantized: QuantizedModel, samples: Sequence[int], *, title: str | None
) -> dict[str, float]:
    """Return the sum of the squared errors of each of the network's outputs on some calibration samples, by name.

    Args:
        context: The job.
        quantized: The network.
        samples: Indices of the samples.
        title: Name of the pass on the terminal; None: it is a part of what is shown there.
    """
    shared, picked = context.share(quantized), Picked(context.loaded.data.calib, samples)
    parts = context.over_samples(
        lambda batches: SimulateBatches(batches, picked, shared, 0), title=title, num_samples=len(picked)
    )
    return {
        name: squared_error(*(np.concatenate(each) for each in zip(*_outputs(parts, name), strict=True)))
        for name in parts[0].fp_outputs
    }


def _outputs(parts: Sequence[Simulated], name: str) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    return [(part.fp_outputs[name], part.q_outputs[name]) for part in parts]

"""Where random numbers come from: one seed for each unit and phase, whatever worker needs it."""

from __future__ import annotations

import numpy as np

from dipo.graph.units import Unit


def unit_seed(seed: int, unit: Unit, *, polish: bool = False) -> int:
    """The seed of a unit's random numbers, from the run's."""
    return int(np.random.SeedSequence([seed, unit.index, *([1] if polish else [])]).generate_state(1)[0])

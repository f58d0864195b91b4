"""Where random numbers come from: one seed for each unit and phase, whatever worker needs it."""

from __future__ import annotations

import numpy as np

from dipo.algo.reconstruct import Phase
from dipo.graph.units import Unit


def unit_seed(seed: int, unit: Unit, phase: Phase) -> int:
    """The seed of a unit's random numbers in a phase, from the run's."""
    entropy = [seed, unit.index, *([phase.first] if phase.first else [])]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])

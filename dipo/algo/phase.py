"""Parts of a unit's training schedule."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """The part of a unit's schedule that is run: `algo.iters` steps in one go, or in several on different inputs."""

    first: int
    """First step of the schedule."""
    stop: int
    """One past the last."""
    lr: float = 1.0
    """Factor on all learning rates."""

    def seed(self, run_seed: int, unit: int) -> int:
        """Return the seed of a unit's random numbers in this phase, whatever worker needs it.

        Args:
            run_seed: Seed of the run.
            unit: The unit's index.
        """
        import numpy as np

        entropy = [run_seed, unit, *([self.first] if self.first else [])]
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])

    def __len__(self) -> int:
        return self.stop - self.first

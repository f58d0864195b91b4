"""Analysis: how much each layer loses to its weights and to its activations."""

from __future__ import annotations

import functools

from dipo.algo.step import NetworkChange, NetworkState, NetworkStep, Workers

ANALYSIS_SAMPLES = 256
"""Largest number of calibration samples that are analyzed."""
SENSITIVITY_SAMPLES = 64
"""How many of them run through the rest of the network again after each layer."""


class Analyze(NetworkStep):
    """Analysis of each layer alone and in the network; it changes nothing, so nothing may follow it."""

    name = "analyze"

    def run(self, state: NetworkState, workers: Workers) -> NetworkChange:
        """Share the samples out over the workers and add up their sums."""
        from dipo.algo.analysis_sums import Analysis, NetworkAnalysis
        from dipo.algo.analyze import AnalyzeBatches
        from dipo.algo.granularity import compare_granularities

        samples = min(ANALYSIS_SAMPLES, state.num_samples)
        sensitivity = min(SENSITIVITY_SAMPLES, samples)
        shared = workers.share(state.quantized)
        parts = workers.over_samples(
            lambda batches: AnalyzeBatches(batches, shared, sensitivity), title=self.name, num_samples=samples
        )
        analysis = functools.reduce(Analysis.merge, parts)
        weights = compare_granularities(state.model, plan=state.plan, quantized=state.quantized, cfg=state.calib)
        # Whole batches are looked at.
        looked_at = min(samples, -(-sensitivity // state.batch_size) * state.batch_size)
        return NetworkChange(
            state.quantized,
            NetworkAnalysis(analysis.totals(), weights, analysis.shift_shares(), samples, looked_at),
        )

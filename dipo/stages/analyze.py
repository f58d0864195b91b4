"""Which layers lose how much, to their weights and to their activations."""

from __future__ import annotations

import functools

from dipo.algo.compare_scales import compare_scales
from dipo.algo.findings import Analysis
from dipo.export.targets import TARGETS
from dipo.graph.plan import QuantizedModel
from dipo.report.analysis import AnalysisReport, report_analysis
from dipo.stages.context import Context

ANALYSIS_SAMPLES = 256
"""Calibration samples that are looked at, at most."""
SENSITIVITY_SAMPLES = 64
"""Of them, those for which the rest of the network runs again behind each layer."""


def analyze(context: Context, quantized: QuantizedModel) -> AnalysisReport:
    """Shards the samples over the workers and rates the layers by what they found."""
    loaded, rules = context.loaded, TARGETS[context.config.platform.name].spec
    samples = min(ANALYSIS_SAMPLES, len(loaded.data.calib))
    sensitivity, size = min(SENSITIVITY_SAMPLES, samples), context.config.data.batch_size
    parts: list[Analysis] = context.over_samples(
        "analyze", "analyze", samples, quantized=quantized, sensitivity_samples=sensitivity
    )
    found = functools.reduce(Analysis.merge, parts)
    return report_analysis(
        loaded.model,
        plan=loaded.plan,
        rules=rules,
        totals=found.totals(),
        weights=compare_scales(loaded.model, plan=loaded.plan, quantized=quantized, cfg=context.config.calib),
        shift_shares=found.shift_shares(),
        samples=samples,
        sensitivity_samples=min(samples, -(-sensitivity // size) * size),
    )

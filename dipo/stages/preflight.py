"""What the user should know before a job's work: the network's composition, how samples are read, the cost."""

from __future__ import annotations

from dipo.report.network_facts import Preflight
from dipo.stages.census import network_facts, sample_shapes
from dipo.stages.estimate import estimate
from dipo.stages.pipeline import PreparedJob


def preflight(prepared: PreparedJob) -> Preflight:
    """Count what the job's network is made of, and time a few passes of it."""
    config, loaded = prepared.config, prepared.loaded
    shapes = sample_shapes(loaded)
    data = loaded.data
    samples = {"calibration": data.calib.describe()}
    samples["evaluation"] = data.eval.describe() if data.eval else "the calibration samples"
    pixels = data.calib.pixels()
    samples |= {} if pixels is None else {"pixels": pixels}
    return Preflight(
        title=f"{config.model.title}: {config.algo.name}, {config.precision.title} for {config.platform.name}",
        facts=network_facts(loaded, config, shapes=shapes),
        samples=samples,
        estimate=estimate(loaded, config, shapes=shapes, device=prepared.device),
    )

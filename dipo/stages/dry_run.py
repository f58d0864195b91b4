"""Output of a dry run: the layers and activations that would be quantized, and how."""

from __future__ import annotations

from dipo.algo.steps.reconstruction import Reconstruction
from dipo.config import Config
from dipo.graph.units import find_units
from dipo.report.terminal import Terminal
from dipo.stages.load import JobInputs
from dipo.stages.parallel import polish_iters
from dipo.stages.sequential import solved_units


def show_plan(config: Config, loaded: JobInputs, terminal: Terminal) -> None:
    """Print the plan of a job: its layers, activations and steps."""
    plan, data = loaded.plan, loaded.data
    terminal.say(f"{config.model.title}: {loaded.path}")
    terminal.say(f"calibration: {data.calib.describe()}")
    terminal.say(f"evaluation: {data.eval.describe() if data.eval else 'none, the calibration samples are taken'}")
    for name, layer in plan.layers.items():
        symmetry = "symmetric" if layer.spec.symmetric else "asymmetric"
        scales = "channel" if layer.spec.per_channel else "tensor"
        if layer.spec.block is not None:
            scales = f"block of {layer.spec.block}"
        terminal.say(f"layer {name}: {layer.spec.bits}-bit weights, {symmetry}, per {scales}")
    for name, weight in plan.recurrent.items():
        scales = "row" if weight.spec.per_channel else "tensor"
        terminal.say(f"recurrent {weight.node}: weight {name} in {weight.spec.bits} bits, symmetric, per {scales}")
    for value, spec in plan.activations.items():
        terminal.say(f"activation {value}: {spec.bits} bits")
    steps = ", ".join(step.name for step in loaded.steps) or "calibrate and export"
    learned = next((step for step in loaded.steps if isinstance(step, Reconstruction)), None)
    if learned is not None:
        units = solved_units(find_units(loaded.model, granularity=learned.granularity, samples=loaded.samples), plan)
        steps += f" ({len(units)} units, {learned.options.iters} steps each"
        polish = polish_iters(learned.options) if config.cluster.schedule == "parallel" else 0
        steps += f", {polish} of them one unit after the other)" if polish else ")"
    terminal.say(f"algorithm {config.algo.name}: {steps}; platform {config.platform.name}")

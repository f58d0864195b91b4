"""How many steps a unit each method needs to be as good as the official QDrop with 2000, and what they cost.

    python benchmarks/steps_to_reach.py

ResNet-20, 1024 calibration images, the written model in ONNX Runtime on 2000 test images. The number of steps doubles
until agreement and SQNR both reach what the official code has after 2000 steps a unit. `floor` is what a plain float
forward and backward of the same units takes for as many steps of that batch, timed right after; `units s` is all that
the units took: captures, steps, corrected biases. Writes `steps_to_reach.txt` beside this script, line by line.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from pathlib import Path

import torch
from step_cost import floor_step

from dipo.algo.activation_cache import cut
from dipo.algo.collectives import SingleWorker
from dipo.algo.network_pair import NetworkPair
from dipo.config import compose_config
from dipo.graph.plan import QuantizedModel
from dipo.graph.torch_module import GraphModule, channels_last
from dipo.graph.units import find_units
from dipo.job import run_job
from dipo.stages.load import load_job

SHARED = Path(__file__).parents[1] / ".." / "shared" / "data"
COMMON = [
    f"model.path={SHARED / 'resnet20_cifar10.onnx'}",
    "data=cifar10",
    f"data.path={SHARED / 'cifar10_subset.npz'}",
    "cluster=inline",
    "cluster.threads=1",
]
GOALS = {"w4a4": (91.35, 14.20), "w2a4": (85.04, 9.33)}
"""Agreement and SQNR of the official QDrop, 2000 steps a unit."""
METHODS = {
    "adaround": "+algo=adaround",
    "brecq": "+algo=brecq",
    "qdrop": "+algo=qdrop",
    "qdrop, weight scales trained": "+algo=qdrop algo.train_scale=true",
    "qdrop, straight-through": "+algo=qdrop algo.rounding=straight_through",
    "qdrop, tune": "algo.steps=[qdrop,tune]",
}
STEPS = (40, 80, 160, 320, 640)
HEAD = f"{'method':30} {'steps':>5} {'agree':>6} {'SQNR':>6} {'units s':>8} {'floor s':>8} {'ratio':>6}"


def floor_seconds(granularity: str) -> float:
    """Of one step: plain float forward and backward of all units."""
    loaded = load_job(compose_config(COMMON))
    batches = cut(64, 16)
    pair = NetworkPair(
        loaded.model, plan=loaded.plan, units=find_units(loaded.model, granularity=granularity),
        quantized=QuantizedModel({}, {}), batches=batches, owners=[0] * len(batches), collectives=SingleWorker(),
        device=torch.device("cpu"),
    )  # fmt: skip
    pair.read_samples(
        lambda batch: {
            name: channels_last(torch.from_numpy(array))
            for name, array in loaded.data.calib.read(batch.start, batch.stop).inputs.items()
        },
        with_float=True,
    )
    total = 0.0
    for unit in pair.units:
        targets = pair.targets(unit)
        nodes = [pair.nodes[name] for name in unit.nodes]
        if unit.layers:
            module = GraphModule(loaded.model, nodes=nodes, outputs=unit.outputs).eval()
            weights = [pair.layer_layouts[name][0] for name in unit.layers]
            inputs = {name: pair.fp[name] for name in module.inputs}
            total += floor_step(module, weights, inputs=inputs, targets=targets, batch_size=32)
        pair.fp.update(targets)
    return total


def run(options: list[str]) -> tuple[float, float, float]:
    """Agreement, SQNR, and seconds of the units."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        with contextlib.redirect_stdout(io.StringIO()):
            run_job(compose_config([*COMMON, *options, f"run.dir={folder}"]))
        report = json.loads((folder / "report.json").read_text())
    error = report["error"]["deployed_vs_fp32"]
    return error["agreement"], error["sqnr_db"], sum(unit["seconds"] for unit in report["units"])


def main() -> None:
    """Prints and writes the table, line by line."""
    lines = ["python benchmarks/steps_to_reach.py", "2 cores, one thread, seed 0"]
    target = Path(__file__).with_suffix(".txt")

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)
        target.write_text("\n".join(lines) + "\n")

    for precision, (agree, sqnr) in GOALS.items():
        say(f"\n{precision}: to reach {agree} % and {sqnr} dB\n{HEAD}")
        for name, options in METHODS.items():
            for steps in STEPS:
                found = run([f"precision={precision}", *options.split(), f"algo.iters={steps}"])
                floor = steps * floor_seconds("layer" if name == "adaround" else "block")
                reached = found[0] >= agree and found[1] >= sqnr
                if reached or steps == STEPS[-1]:
                    mark = "" if reached else "  not reached"
                    measured = f"{found[0]:6.2f} {found[1]:6.2f} {found[2]:8.1f} {floor:8.1f} {found[2] / floor:6.2f}"
                    say(f"{name:30} {steps:5} {measured}{mark}")
                    break


if __name__ == "__main__":
    main()

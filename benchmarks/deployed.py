"""How far what deployed files compute is from what was simulated before.

    python benchmarks/deployed.py [--networks resnet20,mobilenet_v1] [--rows PATTERN]

Each row is one job, whose network is simulated on all evaluation images and compared with the written file in ONNX
Runtime, as it runs the file by default for that target. `within` are the images whose outputs differ by less than 1e-4
of the largest. `itself` is ONNX Runtime against ONNX Runtime without the optimizations that make integer kernels of the
file, or fuse it: where that is below 100 %, no simulation agrees with both. `OpenVINO` is OpenVINO's CPU plugin against
the simulation, for its own target. Writes `deployed.txt` beside this script, line by line.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import dipo
from dipo.algo.activation_cache import cut
from dipo.algo.simulate import simulate
from dipo.config import Config, compose_config
from dipo.export.runtime import run_model
from dipo.export.targets import TARGETS
from dipo.graph.torch_module import channels_last
from dipo.report.measures import output_error
from dipo.run import RunFolder
from dipo.stages.load import load_job
from dipo.stages.network import load_network
from dipo.stages.pipeline import run_silently
from dipo.verify import openvino
from dipo.verify.sessions import options, outputs_of, session_of
from dipo.verify.verdict import Probe

SHARED = Path(__file__).parents[1] / ".." / "shared" / "data"
NETWORKS = {
    "resnet20": [
        f"model.path={SHARED / 'resnet20_cifar10.onnx'}",
        "data=cifar10",
        f"data.path={SHARED / 'cifar10_subset.npz'}",
    ],
    "mobilenet_v1": [
        f"model.path={SHARED / 'mobilenet_v1_025_224.onnx'}",
        f"data.path={SHARED / 'imagenet_subset'}",
        "data.mean=0.5",
        "data.std=0.5",
    ],
}
ROWS = (
    "platform=ort",
    "platform=ort export.format=qop",
    "platform=ort +algo=bias_correction",
    "platform=ort +algo=dfq",
    "platform=ort precision=w4a8",
    "platform=ort precision=w4a4",
    "platform=trt",
    "platform=trt +algo=bias_correction",
    "platform=trt +algo=dfq",
    "platform=openvino",
    "platform=openvino +algo=bias_correction",
    "platform=openvino precision=w4a8 +algo=bias_correction",
)
CLOSE = 1e-4
HEAD = (
    f"{'':56}|     ONNX Runtime         |     itself      |    OpenVINO\n"
    f"{'w8a8 where nothing else is said':56}|  same    cosine   within |  same    cosine |  same    cosine"
)
Outputs = Mapping[str, NDArray[np.float32]]


def row(network: str, extra: str) -> str:
    """Runs one job; its line of the table."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        config = compose_config([*NETWORKS[network], "cluster=inline", "cluster.threads=1", *extra.split()])
        run_silently(config, folder)
        inputs, simulated = simulation(config, folder)
        file = folder / "quantized.onnx"
        optimized = run_model(file, [inputs], threads=1, float_biases=not TARGETS[config.platform.name].spec.int32_bias)
        plain = outputs_of(session_of(file, options(threads=1, optimized=False)), inputs, rows=None)
        figures = f"{_same(simulated, optimized)} {_within(simulated, optimized):7.1f}  | {_same(plain, optimized)} |"
        if config.platform.name == "openvino":
            error = openvino.check(file, Probe(inputs, simulated)).error
            assert error is not None
            figures += f" {_per_cent(error.agreement)} {error.cosine:9.6f}"
        return f"{extra:56}| {figures}".rstrip()


def simulation(config: Config, folder: Path) -> tuple[Outputs, Outputs]:
    """The evaluation images, and what the simulation of a finished run makes of them."""
    loaded = load_job(config)
    dataset = loaded.data.eval or loaded.data.calib
    run = RunFolder(folder, resume=True)
    with contextlib.closing(run):
        quantized = load_network(run).quantized
    found = simulate(
        loaded.model,
        plan=loaded.plan,
        quantized=quantized,
        rules=TARGETS[config.platform.name].spec,
        batches=cut(len(dataset), config.data.batch_size),
        inputs=lambda batch: {
            name: channels_last(torch.from_numpy(array))
            for name, array in dataset.read(batch.start, batch.stop).inputs.items()
        },
        profile_samples=0,
        device=torch.device("cpu"),
        progress=lambda _: None,
    )
    return dataset.read(0, len(dataset)).inputs, found.q_outputs


def _same(reference: Outputs, other: Outputs) -> str:
    error = output_error(reference, other)
    return f"{_per_cent(error.agreement)} {error.cosine:9.6f}"


def _per_cent(value: float | None) -> str:
    return f"{'-':>6}" if value is None else f"{value:6.2f}"


def _within(reference: Outputs, other: Outputs) -> float:
    """Per cent of the images."""
    name = next(iter(reference))
    a, b = (outputs[name].reshape(len(outputs[name]), -1) for outputs in (reference, other))
    return 100 * float((np.abs(a - b).max(axis=1) < CLOSE * np.abs(a).max()).mean())


def main() -> None:
    """Prints and writes the table, line by line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--rows", default=".", help="pattern of the rows that are run")
    args = parser.parse_args()
    lines = ["python benchmarks/deployed.py", f"dipo {dipo.__version__}, CPU, one thread; same: top-1 in %"]
    target = Path(__file__).with_suffix(".txt")

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)
        target.write_text("\n".join(lines) + "\n")

    for network in args.networks.split(","):
        say(f"\n{network}\n{HEAD}")
        for extra in filter(re.compile(args.rows).search, ROWS):
            say(row(network, extra))


if __name__ == "__main__":
    main()

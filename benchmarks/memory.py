"""Most memory that each stage of a job takes on large images, of one or more versions of dipo in one run.

    python benchmarks/memory.py [--tree PATH ...] [--samples 16] [--size 640] [--runs 1]

A detector's shape: a backbone of 4 MB whose values shrink from 320x320x24 on, without a step, in this process alone
(`cluster=inline`), with one thread. Each tree (by default the one that holds this script) runs in a process of its own.
A figure is the most resident memory during a stage, less what was resident as the job began, in MB; the last line of
a tree is its time. Writes `memory.txt` beside this script.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.numpy_helper import from_array

HERE = Path(__file__).resolve()
WIDTHS = (24, 48, 96, 192, 384)


def network(size: int) -> onnx.ModelProto:
    """The float network: five levels of a strided convolution, and a residual block of two."""
    rng = np.random.default_rng(0)
    nodes, tensors, last, width = [], [], "image", 3

    def conv(source: str, inputs: int, outputs: int, kernel: int, stride: int, *, groups: int = 1) -> str:
        name = f"conv{len(nodes)}"
        shape = (outputs, inputs // groups, kernel, kernel)
        weight = rng.normal(scale=(2 / np.prod(shape[1:])) ** 0.5, size=shape).astype(np.float32)
        tensors.extend([from_array(weight, f"{name}_w"), from_array(np.zeros(outputs, np.float32), f"{name}_b")])
        pads = [kernel // 2] * 4
        nodes.append(
            helper.make_node(
                "Conv", [source, f"{name}_w", f"{name}_b"], [name], name, pads=pads, strides=[stride] * 2, group=groups
            )
        )
        return name

    def node(kind: str, *sources: str) -> str:
        name = f"{kind.lower()}{len(nodes)}"
        nodes.append(helper.make_node(kind, list(sources), [name], name))
        return name

    for outputs in WIDTHS:
        down = node("Relu", conv(last, width, outputs, 3, 2))
        inner = node("Relu", conv(down, outputs, outputs, 1, 1))
        inner = node("Relu", conv(inner, outputs, outputs, 3, 1, groups=outputs))
        last, width = node("Relu", node("Add", conv(inner, outputs, outputs, 1, 1), down)), outputs
    conv(last, width, 85, 1, 1)
    nodes[-1].output[0] = "boxes"
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "detector", [value("image", TensorProto.FLOAT, ["N", 3, size, size])],
        [value("boxes", TensorProto.FLOAT, ["N", 85, size // 32, size // 32])], tensors,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _kilobytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def _measure(model: str, data: str, run: str) -> None:
    """Print the stages' figures as JSON, from within one tree."""
    from dipo.config import compose_config
    from dipo.stages import clock
    from dipo.stages.pipeline import run_silently

    peaks: dict[str, float] = {}
    stage = clock.Clock.stage

    @contextmanager
    def measured(self: clock.Clock, name: str) -> Iterator[None]:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        with stage(self, name):
            yield
        peaks[name] = max(peaks.get(name, 0.0), (_kilobytes("VmHWM") - before) / 1024)

    clock.Clock.stage = measured  # type: ignore[method-assign]
    options = [f"model.path={model}", f"data.path={data}", "cluster=inline", "cluster.threads=1"]
    config = compose_config([*options, "+algo=none"])
    before, began = _kilobytes("VmRSS"), time.perf_counter()
    run_silently(config, Path(run))
    print(json.dumps({"peaks": peaks, "seconds": time.perf_counter() - began}))


def main() -> None:
    """Prints and writes the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tree", type=Path, action="append", help="folder that holds a version of dipo")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        _measure(*asked.measure)
        return
    trees = [tree.resolve() for tree in asked.tree or [HERE.parent.parent]]
    rows: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        model, data = Path(folder, "net.onnx"), Path(folder, "images.npz")
        onnx.save(network(asked.size), model)
        images = np.random.default_rng(1).normal(size=(asked.samples, 3, asked.size, asked.size))
        np.savez(data, image=images.astype(np.float32))
        largest = asked.samples * WIDTHS[0] * (asked.size // 2) ** 2 * 4 / 2**20
        lines = [
            f"python benchmarks/memory.py --samples {asked.samples} --size {asked.size}",
            f"a network of {model.stat().st_size / 1e6:.1f} MB, {asked.samples} images of 3x{asked.size}x{asked.size}, "
            f"its largest value {largest:.0f} MB; most memory in MB:",
        ]
        for index, tree in enumerate(trees):
            command = [sys.executable, str(HERE), "--measure", str(model), str(data), str(Path(folder, f"run{index}"))]
            env = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
            made = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(made.stdout.splitlines()[-1])
            rows.append(found["peaks"] | {"time in s": found["seconds"]})
    lines.append(f"{'':12}" + "".join(f"{f'tree {index}':>12}" for index in range(len(trees))) + f"{'last/first':>12}")
    for name in rows[0]:
        figures = [row[name] for row in rows]
        ratio = f"{figures[-1] / max(figures[0], 1e-9):12.2f}"
        lines.append(f"{name:12}" + "".join(f"{figure:12.1f}" for figure in figures) + ratio)
    text = "\n".join(lines) + "\n"
    print(text, end="")
    HERE.with_suffix(".txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

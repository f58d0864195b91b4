"""Calibration alone, as a whole process; with --rate also images per second against a bare forward pass.

python benchmarks/calibration.py [--rate] model.path=... data=imagenet data.path=... cluster.threads=2
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import torch

from dipo.algo.activation_cache import cut
from dipo.algo.calibrate import activation_ranges, observe, quantize_model
from dipo.config import compose_config
from dipo.graph.torch_module import GraphModule, channels_last
from dipo.stages.load import load_job

ROUNDS = 5


def main() -> None:
    """Calibrates; prints what it took."""
    options = [argument for argument in sys.argv[1:] if argument != "--rate"]
    config = compose_config(options)
    torch.set_num_threads(config.cluster.threads)
    loaded = load_job(config)
    data, batches = loaded.data.calib, cut(len(loaded.data.calib), config.data.batch_size)

    def read(batch):
        return {
            name: channels_last(torch.from_numpy(a)) for name, a in data.read(batch.start, batch.stop).inputs.items()
        }

    def calibrate(inputs):
        return observe(loaded.model, plan=loaded.plan, batches=batches, inputs=inputs, device=torch.device("cpu"))

    if "--rate" not in sys.argv:
        ranges = activation_ranges(loaded.plan, calibrate(read).statistics, cfg=config.calib)
        quantized = quantize_model(loaded.model, plan=loaded.plan, ranges=ranges, cfg=config.calib)
        print(len(quantized.activations), "ranges")
        return
    held = {batch.index: read(batch) for batch in batches}
    module = GraphModule(loaded.model).eval()
    rates = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        with torch.inference_mode():
            for batch in batches:
                module(held[batch.index])
        middle = time.perf_counter()
        calibrate(lambda batch: held[batch.index])
        rates.append((len(data) / (middle - start), len(data) / (time.perf_counter() - middle)))
    bare, observed = (statistics.median(column) for column in zip(*rates, strict=True))
    lines = [
        f"python benchmarks/calibration.py {' '.join(sys.argv[1:])}",
        f"{config.cluster.threads} threads, torch {torch.__version__}, median of {ROUNDS} rounds, images in memory",
        f"bare forward {bare:.0f} images/s, calibration {observed:.0f} images/s: {bare / observed:.2f} x the time",
    ]
    print("\n".join(lines))
    Path(__file__).with_name(f"calibration-{loaded.path.stem}.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

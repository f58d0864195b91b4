"""AIMET-ONNX; runs in an environment with aimet-onnx.

    python aimet.py MODEL.onnx SAMPLES OUT.onnx --setting w4a8-adaround --num 256 --mean 0.5 --std 0.5

Every layer has the same width. AdaRound takes 2000 steps a layer, as in the papers' comparisons; its own default is
10000. `enhanced` is its scheme `tf_enhanced`, ranges of the best SQNR; the others have its default, the extremes.
"""

from __future__ import annotations

import random

import numpy as np
import onnx
import torch
from aimet_onnx import QuantizationSimModel, apply_adaround, apply_seq_mse
from samples import clean, task

BATCH = 32
STEPS = 2000
WEIGHTS = {"w8a8": "int8", "w4a8": "int4"}


def main() -> None:
    """Quantizes one model."""
    job = task(__doc__, ("w8a8", "w8a8-enhanced", "w4a8", "w4a8-seqmse", "w4a8-adaround"))
    precision, _, method = job.setting.partition("-")
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    batches = list(job.batches(BATCH))
    sim = QuantizationSimModel(
        clean(job.source),
        param_type=WEIGHTS[precision],
        activation_type="int8",
        quant_scheme="tf_enhanced" if method == "enhanced" else "min_max",
    )
    if method == "seqmse":
        apply_seq_mse(sim, batches)
    elif method == "adaround":
        apply_adaround(sim, batches, num_iterations=STEPS)
    sim.compute_encodings(batches)
    onnx.save(sim.to_onnx_qdq(), job.target)


if __name__ == "__main__":
    main()

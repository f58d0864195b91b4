"""NNCF's post-training quantization; runs in an environment with nncf, and with openvino where OUT ends in .xml.

    python nncf_quantize.py MODEL.onnx SAMPLES OUT.onnx --setting w8a8-full --num 256 --mean 0.5 --std 0.5

The end of OUT decides what is quantized: the ONNX model, or the one that OpenVINO makes of it.
"""

from __future__ import annotations

import nncf
import onnx
from samples import Task, clean, task

FAST_BIAS_CORRECTION = {"w8a8-default": True, "w8a8-full": False}


def main() -> None:
    """Quantizes one model."""
    job = task(__doc__, tuple(FAST_BIAS_CORRECTION))
    samples = nncf.Dataset(list(job.batches(1)))
    options = {"subset_size": len(job.x), "fast_bias_correction": FAST_BIAS_CORRECTION[job.setting]}
    if job.target.suffix == ".xml":
        _in_openvino(job, samples, options)
    else:
        onnx.save(nncf.quantize(clean(job.source), samples, **options), job.target)


def _in_openvino(job: Task, samples: nncf.Dataset, options: dict[str, int]) -> None:
    import openvino

    model = nncf.quantize(openvino.convert_model(job.source), samples, **options)
    openvino.save_model(model, job.target, compress_to_fp16=False)


if __name__ == "__main__":
    main()

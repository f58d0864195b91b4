"""Who reads which file, in explicit tables: another consumer is one module and one line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Protocol

from dipo.verify import aimet, atlas, onnx_runtime, openvino, qnn, ranges, rknn, tidl
from dipo.verify.folder import Target
from dipo.verify.verdict import Probe, Refused, Unavailable, Verdict


class Check(Protocol):
    """Has a consumer read a file."""

    def __call__(self, file: Path, probe: Probe) -> Verdict:
        """May raise Refused or Unavailable, the answers without a verdict."""
        ...


@dataclass(frozen=True)
class Consumer:
    """A program that reads what is written."""

    name: str
    check: Check
    files: str
    """Pattern of the names that it reads."""
    platforms: frozenset[str] | None = None
    """Targets whose files it reads; None: all."""

    def reads(self, target: Target, file: Path) -> bool:
        """Whether a target's file is for it."""
        return fnmatch(file.name, self.files) and (self.platforms is None or target.platform in self.platforms)


CONSUMERS = (
    *(Consumer(ranges.NAME, ranges.check, files) for files in ranges.FORMS),
    Consumer("ONNX Runtime", onnx_runtime.check, "*.onnx"),
    Consumer("OpenVINO", openvino.check, "*.onnx", frozenset({"openvino"})),
    Consumer("ONNX Runtime's QNN provider", qnn.check, "quantized.onnx", frozenset({"qnn"})),
    Consumer("AIMET", aimet.check, "*_encodings.json"),
    Consumer("RKNN toolkit 2", rknn.check, "rk_quantized_param.yaml"),
    Consumer("protobuf, for AMCT", atlas.check, "scale_offset_record.txt"),
    Consumer("protobuf, for TIDL", tidl.check, "tidl_quant_params.prototxt"),
)

ELSEWHERE = {
    "calibration.cache": "TensorRT up to 10 reads it, on a GPU alone",
    "trt_clip_val.json": "the user's script for TensorRT up to 10 reads it",
    "rv_quantized_param.*": "RKNN toolkit 1 reads it, which no registry has for today's Python",
    "rk_quantized_param.json": "the same as the YAML, for scripts",
    "atlas_quant_param.json": "the user's scripts read it",
    "ti_blob_range.*": "the user's scripts read it",
    "imx_scale.json": "the tools of NXP read it, which come with their SDK alone",
    "magicmind_quant_param.json": "the user's script for MagicMind reads it, which comes with its SDK alone",
    "stpu_minmax.json": "the compiler of the STPU reads it, which comes with its SDK alone",
}
"""Files whose consumers cannot be asked, and why."""


def judge(target: Target, file: Path, probe: Probe) -> Iterator[Verdict]:
    """What each consumer of a file says; at least one verdict, and be it that nobody looked."""
    asked = [consumer for consumer in CONSUMERS if consumer.reads(target, file)]
    for consumer in asked:
        yield _ask(consumer, file, probe)
    why = next((why for name, why in ELSEWHERE.items() if fnmatch(file.name, name)), None)
    if why is not None or not asked:
        yield Verdict("nobody", file, not_checked=why or "nobody is known to read it")


def _ask(consumer: Consumer, file: Path, probe: Probe) -> Verdict:
    try:
        return consumer.check(file, probe)
    except Refused as answer:
        return Verdict(consumer.name, file, refused=str(answer))
    except Unavailable as answer:
        return Verdict(consumer.name, file, not_checked=str(answer))

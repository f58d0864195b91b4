"""The programs that read each file: a target names its files' consumers, each of which is one module here.

A file that dipo can read back is also compared with `quantized.onnx`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from dipo.export.target import QUANTIZED, TargetFile
from dipo.export.targets import TARGETS
from dipo.verify import aimet, atlas, onnx_runtime, openvino, qnn, ranges, rknn, tidl
from dipo.verify.discovery import TargetFolder
from dipo.verify.verdict import Probe, Refused, Unavailable, Verdict

CONSUMERS: dict[str, Callable[[Path, Probe], Verdict]] = {
    "ONNX Runtime": onnx_runtime.check,
    "OpenVINO": openvino.check,
    "ONNX Runtime's QNN provider": qnn.check,
    "AIMET": aimet.check,
    "RKNN toolkit 2": rknn.check,
    "protobuf, for AMCT": atlas.check,
    "protobuf, for TIDL": tidl.check,
}
"""Checks by name of the program that reads the file. They may raise Refused or Unavailable."""


def judge(target: TargetFolder, file: Path, probe: Probe) -> Iterator[Verdict]:
    """Yield what each consumer of a file says; at least one verdict, which may be that no program checked it."""
    declared = declared_as(target.platform, file.name)
    if declared is None:
        yield Verdict("nobody", file, not_checked="nobody is known to read it")
        return
    if declared.read is not None:
        yield _ask(ranges.NAME, file, partial(ranges.check, file, declared))
    for name in declared.readers:
        yield _ask(name, file, partial(CONSUMERS[name], file, probe))
    if declared.elsewhere is not None:
        yield Verdict("nobody", file, not_checked=declared.elsewhere)


def declared_as(platform: str | None, name: str) -> TargetFile | None:
    """Return a target's declaration of a file of this name.

    Args:
        platform: The target. Where it is None, not installed, or has no such file, all targets are searched.
        name: The name of the file.

    Returns:
        None where no target has such a file.
    """
    targets = [TARGETS[platform]] if platform is not None and platform in TARGETS else []
    for candidates in (targets, TARGETS.values()):
        found = [each for target in candidates for each in target.files if each.name == name]
        if found:
            # The models are every target's: without knowing whose they are, those are asked that read everybody's.
            return min(found, key=lambda each: len(each.readers))
    return QUANTIZED if name.endswith(".onnx") else None


def _ask(name: str, file: Path, check: Callable[[], Verdict]) -> Verdict:
    try:
        return check()
    except Refused as answer:
        return Verdict(name, file, refused=str(answer))
    except Unavailable as answer:
        return Verdict(name, file, not_checked=str(answer))

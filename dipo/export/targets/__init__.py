"""The deploy targets: dipo's own, listed once, and those that other packages register.

Another target is one file and one line here, or one file in another package and its entry point:

    [project.entry-points."dipo.targets"]
    mydevice = "mypackage.mydevice:TARGET"
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dipo.errors import UserError
from dipo.export.formats import OnnxFormat
from dipo.export.target import Target
from dipo.export.targets import atlas, imx, magicmind, openvino, ort, qnn, rk, rv, snpe, stpu, ti, trt
from dipo.registry import Registry
from dipo.section import choose

_OWN: tuple[Target[Any], ...] = (
    ort.TARGET,
    trt.TARGET,
    snpe.TARGET,
    qnn.TARGET,
    rv.TARGET,
    rk.TARGET,
    atlas.TARGET,
    ti.TARGET,
    imx.TARGET,
    magicmind.TARGET,
    stpu.TARGET,
    openvino.TARGET,
)

TARGETS: Registry[Target[Any]] = Registry("target", {target.name: target for target in _OWN}, group="dipo.targets")
"""Targets by the name that the user types."""

OWN_OPTIONS = frozenset(option for target in _OWN for option in target.option_names)
"""Names of the options of dipo's own targets, which are options of `platform` themselves."""


def check_options(
    names: Iterable[str], given: Mapping[str, Any], *, form: OnnxFormat, all_take_form: bool = False
) -> None:
    """Check that the targets take the options.

    Args:
        names: Names of the targets.
        given: The options that the user gave.
        form: Format of `quantized.onnx`.
        all_take_form: Whether the format is asked for of all targets, not of the first alone.

    Raises:
        UserError: No target takes one of them, or its value is wrong.
    """
    targets = [TARGETS[name] for name in names]
    taken = {option for target in targets for option in target.option_names}
    for option in given:
        if option not in taken:
            raise UserError(_not_taken(option, targets, taken))
    for target in targets:
        target.check_options(target.options_of(given))
    for target in targets if all_take_form else targets[:1]:
        if form != form.for_spec(target.spec):
            raise UserError(
                f"export.format={form.format}: platform {target.name} keeps biases float, which integer operators do "
                "not take, set export.format=qdq"
            )


def _not_taken(option: str, targets: Iterable[Target[Any]], taken: Iterable[str]) -> str:
    """Return the error for an option that none of the targets has."""
    names = ", ".join(target.name for target in targets)
    key = f"platform.{option}" if option in OWN_OPTIONS else f"platform.options.{option}"
    readers = " or ".join(name for name, target in TARGETS.items() if option in target.option_names)
    if readers:
        return f"{key}: only {readers} has it, not {names}, leave it out"
    others = [each for each in taken if each not in OWN_OPTIONS]
    what = choose(option, others) if others else "leave it out"
    return f"{key}: {names} has no such option, {what}"

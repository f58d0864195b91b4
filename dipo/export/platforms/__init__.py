"""The deploy targets, in explicit tables: another target is one file and one line in each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

import onnx_ir as ir

from dipo.config import PlatformConfig
from dipo.errors import UserError
from dipo.export.forms import QDQ, Form
from dipo.export.platforms import atlas, imx, magicmind, openvino, ort, qnn, rk, rv, snpe, stpu, ti, trt
from dipo.export.ranges import spread, unify_concats
from dipo.export.storage import with_room_for_biases
from dipo.graph.plan import QuantizedModel
from dipo.graph.rules import PlatformRules
from dipo.quant.spec import QParams

Writer = Callable[..., list[Path]]
"""`write(model, quantized, folder, *, metadata, form)` writes everything that one target reads into `folder`, and
returns the files, `quantized.onnx` first. `model` is the float graph; `metadata` goes into the ONNX files."""

_PLATFORMS = (atlas, imx, magicmind, openvino, ort, qnn, rk, rv, snpe, stpu, ti, trt)

RULES: dict[str, PlatformRules] = {platform.RULES.name: platform.RULES for platform in _PLATFORMS}
"""What each target quantizes."""

WRITERS: dict[str, Writer] = {platform.RULES.name: platform.write for platform in _PLATFORMS}
"""How each target is exported."""

OPTIONS: dict[str, tuple[str, ...]] = {
    "snpe": ("schema",),
    "qnn": ("schema",),
    "stpu": ("winograd",),
    "trt": ("version",),
}
"""The options of `platform` that a target's writer takes."""


def write_target(
    name: str,
    model: ir.Model,
    quantized: QuantizedModel,
    folder: Path,
    *,
    metadata: Mapping[str, str],
    cfg: PlatformConfig,
    form: Form = QDQ,
    beside: Mapping[str, QParams] = MappingProxyType({}),
) -> list[Path]:
    """Writes a target's files into a folder, which is made where it is missing.

    Args:
        name: The target.
        model: The float graph.
        quantized: Its integer weights and activation scales, on the target's grids.
        folder: Where the files go.
        metadata: Goes into the ONNX files.
        cfg: The options that the writer takes, where they are set.
        form: How `quantized.onnx` is written.
        beside: Grids of values that the target leaves float, where its rules have `ranges_beside`.

    Returns:
        The files, tensors that lie beside an ONNX file included; `quantized.onnx` is the first.

    Raises:
        UserError: A tensor that the target looks for has no range, or one that it does not take; nothing is written.
    """
    options = {option: getattr(cfg, option) for option in OPTIONS.get(name, ())}
    folder.mkdir(parents=True, exist_ok=True)
    given = {option: value for option, value in options.items() if value is not None}
    if RULES[name].ranges_beside:
        given["beside"] = beside
    if RULES[name].int32_bias:
        # A range file has to say the scales with which the biases fit, not only the ONNX file.
        quantized = with_room_for_biases(model, quantized)
    files = WRITERS[name](model, quantized, folder, metadata=metadata, form=form, **given)
    tensors = [file.with_name(f"{file.name}.data") for file in files]
    return [*files, *(file for file in tensors if file.exists())]


def on_grids_of(rules: PlatformRules, model: ir.Model, quantized: QuantizedModel) -> QuantizedModel:
    """The network with the grids that a target forces on values that meet in one operator."""
    if not rules.unify_concats:
        return quantized
    # Those of values that are not quantized themselves count too: a Concat may end in a Relu or a pooling.
    unified = unify_concats(model, spread(model, quantized.activations))
    activations = {name: unified.get(name, own) for name, own in quantized.activations.items()}
    return QuantizedModel(quantized.layers, activations)


def check_options(names: Iterable[str], *, cfg: PlatformConfig, form: Form, all_take_form: bool = False) -> None:
    """Looks for options that mean nothing to the targets.

    Args:
        names: The targets.
        cfg: The options.
        form: How `quantized.onnx` is written.
        all_take_form: The form is asked for of all targets, not of the first alone.

    Raises:
        UserError: There is one, or TensorRT's version is none.
    """
    names = list(names)
    taken = {option for name in names for option in OPTIONS.get(name, ())}
    for option in dict.fromkeys(option for options in OPTIONS.values() for option in options):
        if getattr(cfg, option) not in (None, False) and option not in taken:
            readers = " or ".join(name for name, options in OPTIONS.items() if option in options)
            raise UserError(f"platform.{option}: only {readers} has it, not {', '.join(names)}, leave it out")
    if cfg.version is not None:
        trt.cache_header(cfg.version)
    for name in names if all_take_form else names[:1]:
        if form != form.for_rules(RULES[name]):
            raise UserError(
                f"export.format={form.format}: platform {name} keeps biases float, which integer operators do not "
                "take, set export.format=qdq"
            )


def form_remarks(name: str, *, form: Form) -> list[str]:
    """What the user should know of the form of a target's files."""
    taken = form.for_rules(RULES[name])
    if taken == form:
        return []
    return [
        f"its biases stay float, which integer operators do not take: quantized.onnx is written with "
        f"export.format={taken.format}, not {form.format}"
    ]


def remarks(name: str, *, cfg: PlatformConfig) -> list[str]:
    """What the user should know of a target's files."""
    if name == "trt" and cfg.version is not None and trt.cache_header(cfg.version) is None:
        return [
            f"TensorRT {cfg.version} no longer reads range files (calibration.cache, dynamic ranges): none are "
            "written, its scales are those in quantized.onnx"
        ]
    return []

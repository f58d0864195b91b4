"""The precision that the user asks for, checked against and adapted to what the target supports."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from dipo.errors import UserError
from dipo.graph.target_spec import TargetSpec
from dipo.recipe import PrecisionConfig

_BLOCK = "weight_block"
_WORDS = {
    "weight_per_channel": ("one scale for a weight", "a scale for each channel"),
    "weight_symmetric": ("asymmetric weights", "symmetric weights"),
    "weight_narrow": ("weights with all their codes", "narrow weights"),
    "act_signed": ("unsigned activations", "signed activations"),
    "act_symmetric": ("asymmetric activations", "symmetric activations"),
    "power_of_two": ("any scales", "scales that are powers of two"),
}
"""By option: how messages name its value false, and its value true."""
_GRIDS = (*_WORDS, _BLOCK)


def fitting(rules: TargetSpec, precision: PrecisionConfig) -> PrecisionConfig:
    """Adapt a precision that was asked of another target to what this one supports.

    A width that it lacks becomes the next wider one, or the widest; an option with a single allowed value becomes None.

    Args:
        rules: What the target takes.
        precision: What was asked of the other target.
    """
    refused: dict[str, Any] = {name: None for name in _GRIDS if not _takes(rules, name, getattr(precision, name))}
    return dataclasses.replace(
        precision,
        **refused,
        weight_bits=_next_width(precision.weight_bits, rules.weight_widths),
        act_bits=_next_width(precision.act_bits, rules.act_widths),
        first_last_bits=precision.first_last_bits and _next_width(precision.first_last_bits, rules.weight_widths),
        overrides={pattern: _fitting_override(rules, settings) for pattern, settings in precision.overrides.items()},
    )


def _fitting_override(rules: TargetSpec, settings: Mapping[str, Any]) -> dict[str, Any]:
    fitted = {name: value for name, value in settings.items() if name not in _GRIDS or _takes(rules, name, value)}
    for name, widths in (("weight_bits", rules.weight_widths), ("act_bits", rules.act_widths)):
        if name in fitted:
            fitted[name] = _next_width(fitted[name], widths)
    return fitted


def _next_width(bits: int, widths: Collection[int]) -> int:
    """Return the next wider of the target's widths, or its widest."""
    return min((width for width in widths if width >= bits), default=max(widths))


def _takes(rules: TargetSpec, option: str, wish: object) -> bool:
    if option == _BLOCK:
        return wish is None or bool(rules.weight_blocks)
    return wish is None or rules.only(option) in (None, wish)


def check_constraints(rules: TargetSpec, precision: PrecisionConfig) -> None:
    """Check that the target supports the grids asked of all layers, then those of the overrides.

    Raises:
        UserError: It does not support one.
    """
    _check_grids(rules, {name: getattr(precision, name) for name in _GRIDS})
    for settings in precision.overrides.values():
        _check_grids(rules, settings)


def _check_grids(rules: TargetSpec, wish: Mapping[str, Any]) -> None:
    for option, words in _WORDS.items():
        if not _takes(rules, option, wish.get(option)):
            what = words[bool(rules.only(option))]
            raise UserError(f"precision.{option}: platform {rules.name} takes only {what}, leave it out")
    if not _takes(rules, _BLOCK, wish.get(_BLOCK)):
        raise UserError(f"precision.{_BLOCK}: platform {rules.name} has no scales for blocks of a weight, leave it out")
    if wish.get(_BLOCK) is not None and wish.get("weight_per_channel") is False:
        raise UserError(f"precision.{_BLOCK}: blocks are parts of channels, leave out weight_per_channel=false")


def check_widths(rules: TargetSpec, *, weights: Mapping[str, int], activations: Mapping[str, int]) -> None:
    """Check that the target has all the widths.

    Args:
        rules: What the target takes.
        weights: Bits by name of the layer.
        activations: Bits by name of the value.

    Raises:
        UserError: It lacks one.
    """
    for kind, widths, found in (("weight", rules.weight_widths, weights), ("act", rules.act_widths, activations)):
        for name, bits in found.items():
            if bits not in widths:
                raise UserError(
                    f"platform={rules.name}: {name!r} has {bits} bits and the target takes "
                    f"{' or '.join(map(str, widths))}, set precision.{kind}_bits (and precision.first_last_bits and "
                    "precision.overrides) to that"
                )


def check_patterns(option: str, patterns: Iterable[str], names: Sequence[str], layers: Sequence[str]) -> None:
    """Check that every pattern matches a name.

    Raises:
        UserError: A pattern matches none; the nearest name and some layers are suggested.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            choices = list(dict.fromkeys([*get_close_matches(pattern, names, n=1), *layers]))
            shown = ", ".join([*choices[:8], *(["..."] if len(choices) > 8 else [])])
            raise UserError(f"{option} {pattern!r}: no layer is named like that, choose from {shown}")

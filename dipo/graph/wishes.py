"""What the user wishes of a target, and what it can do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from dipo.errors import UserError
from dipo.graph.target_spec import TargetSpec


def fitting(rules: TargetSpec, wishes: Mapping[str, Any]) -> dict[str, Any]:
    """What a target can do of wishes that were made for another one.

    Widths that it lacks become the next wider one, or the widest; what it takes in one way alone is left to it.

    Args:
        rules: What the target takes.
        wishes: Of `make_plan`'s arguments those that are options of `precision`.
    """
    found = {
        name: value for name, value in wishes.items() if name not in {*_WORDS, _BLOCK} or _takes(rules, name, value)
    }
    for name in found.keys() & {"weight_bits", "act_bits", "first_last_bits"}:
        if found[name] is not None:
            widths = rules.act_widths if name == "act_bits" else rules.weight_widths
            found[name] = min((width for width in widths if width >= found[name]), default=max(widths))
    if "overrides" in found:
        found["overrides"] = {pattern: fitting(rules, values) for pattern, values in found["overrides"].items()}
    return found


def _takes(rules: TargetSpec, option: str, wish: object) -> bool:
    if option == _BLOCK:
        return wish is None or bool(rules.weight_blocks)
    return wish is None or rules.only(option) in (None, wish)


_BLOCK = "weight_block"
_WORDS = {
    "weight_per_channel": ("one scale for a weight", "a scale for each channel"),
    "weight_symmetric": ("asymmetric weights", "symmetric weights"),
    "weight_narrow": ("weights with all their codes", "narrow weights"),
    "act_signed": ("unsigned activations", "signed activations"),
    "act_symmetric": ("asymmetric activations", "symmetric activations"),
    "power_of_two": ("any scales", "scales that are powers of two"),
}
"""By option: what a target takes that takes false alone, and true alone."""


def check_wishes(rules: TargetSpec, wishes: Iterable[Mapping[str, Any]]) -> None:
    """Looks for what the target cannot do.

    Raises:
        UserError: It is asked for.
    """
    for wish in wishes:
        for option, words in _WORDS.items():
            if not _takes(rules, option, wish.get(option)):
                what = words[bool(rules.only(option))]
                raise UserError(f"precision.{option}: platform {rules.name} takes only {what}, leave it out")
        if not _takes(rules, _BLOCK, wish.get(_BLOCK)):
            raise UserError(
                f"precision.{_BLOCK}: platform {rules.name} has no scales for blocks of a weight, leave it out"
            )
        if wish.get(_BLOCK) is not None and wish.get("weight_per_channel") is False:
            raise UserError(f"precision.{_BLOCK}: blocks are parts of channels, leave out weight_per_channel=false")


def check_widths(rules: TargetSpec, *, weights: Mapping[str, int], activations: Mapping[str, int]) -> None:
    """Looks for widths that the target does not have.

    Args:
        rules: What the target takes.
        weights: Bits by name of the layer.
        activations: Bits by name of the value.

    Raises:
        UserError: There is one.
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
    """Looks for patterns of names that fit none.

    Raises:
        UserError: There is one; the nearest name and some layers are named.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            choices = list(dict.fromkeys([*get_close_matches(pattern, names, n=1), *layers]))
            shown = ", ".join([*choices[:8], *(["..."] if len(choices) > 8 else [])])
            raise UserError(f"{option} {pattern!r}: no layer is named like that, choose from {shown}")

"""Comparison of a range file's tensors with the grids that `quantized.onnx` beside it gives to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from dipo.export import target
from dipo.export.encodings import BIAS_BITS
from dipo.export.range_file import Claim
from dipo.verify.onnx_network import Network
from dipo.verify.reference_grids import ReferenceGrid, reference_grids
from dipo.verify.verdict import State, TensorOutcome

Numbers = NDArray[np.float64]

QUANTIZED, DEPLOYED = target.QUANTIZED.name, target.DEPLOYED.name
STEP = 1e-5
"""Largest relative difference of two equal steps: some files have single precision."""
ON_GRID = 1e-2
"""Largest distance of a number from a code, in steps, for the same reason."""
MOST = 1 << 30
"""The largest code of a bias: `quantized.onnx` has a wider step for one that would be beyond."""
NAMED = 3
"""Number of tensors that a sentence names."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """`deploy.onnx`, and the grids that its tensors have in `quantized.onnx`."""

    deployed: Network
    grids: Mapping[str, Sequence[ReferenceGrid]]
    constants: Mapping[str, onnx.TensorProto]

    @staticmethod
    def beside(file: Path) -> Comparison:
        """Read the two models beside a range file.

        Raises:
            Refused: A model is missing.
        """
        deployed = Network.read(file.with_name(DEPLOYED))
        quantized = Network.read(file.with_name(QUANTIZED))
        return Comparison(deployed, reference_grids(deployed, quantized), deployed.constants())

    def fates(self, claims: Iterable[Claim]) -> tuple[list[TensorOutcome], list[str]]:
        """Return the tensors that agree or have an unknown name, and a sentence for each of the others."""
        tensors, wrong = [], []
        for claim in claims:
            sentence = self.contradiction(claim)
            if claim.tensor is None:
                tensors.append(TensorOutcome(claim.name, State.IGNORED, f"nothing in {DEPLOYED} has this name"))
            elif sentence is not None:
                wrong.append(sentence)
            else:
                why = "" if claim.tensor in self.grids else f"known by name, without a grid in {QUANTIZED}"
                tensors.append(TensorOutcome(claim.name, State.ACCEPTED, why))
        return tensors, wrong

    def contradiction(self, claim: Claim) -> str | None:
        """Say how a claim contradicts `quantized.onnx`; None where it does not, or no grid is known there."""
        values = self._constant(claim.tensor)
        bad = _bad_numbers(claim)
        said = [bad] if bad else [_against(claim, held, values) for held in self.grids.get(claim.tensor or "", ())]
        return None if not said or None in said else f"{claim.name!r} has {said[0]}"

    def _constant(self, name: str | None) -> Numbers | None:
        tensor = self.constants.get(name or "")
        return None if tensor is None else self.deployed.array(tensor).astype(np.float64)


def sentence_of(wrong: Sequence[str], file: Path) -> str | None:
    """Say in one sentence what is wrong in a file; None where nothing is."""
    if not wrong:
        return None
    more = f", and {len(wrong) - NAMED} tensors more" if len(wrong) > NAMED else ""
    return f"{file.name} contradicts {QUANTIZED}: {'; '.join(wrong[:NAMED])}{more}"


def _bad_numbers(claim: Claim) -> str | None:
    """Say what is wrong with a claim's numbers by themselves; None where nothing is."""
    given = [each for each in (claim.scale, claim.low, claim.high, claim.offset) if each is not None]
    if not all(np.isfinite(each).all() for each in given):
        return "a number that is not finite"
    if claim.scale is not None and not np.all(claim.scale > 0):
        return f"a step of {claim.scale.min():.6g}"
    if claim.low is not None and claim.high is not None and not np.all(claim.low <= claim.high):
        return f"a range from {claim.low.min():.6g} to {claim.high.max():.6g}"
    # What a file says twice has to be the same.
    if claim.scale is None or claim.low is None or claim.offset is None:
        return None
    if np.allclose(claim.low / claim.scale, claim.offset, rtol=STEP, atol=ON_GRID):
        return None
    return f"the offset {claim.offset[0]:g}, which is not that of its range"


def _against(claim: Claim, held: ReferenceGrid, values: Numbers | None) -> str | None:
    """Say how a claim contradicts a grid; None where it does not. `values` are those of a constant."""
    if claim.scale is not None and (sentence := _other_step(claim.scale, held, values)) is not None:
        return sentence
    if claim.low is None or claim.high is None:
        return None
    if held.bits >= BIAS_BITS:
        largest = 0.0 if values is None else float(np.abs(values).max())
        close = np.allclose([-claim.low, claim.high], largest, rtol=STEP, atol=0)
        return (
            None if close else f"ends {claim.low[0]:.6g} and {claim.high[0]:.6g} around a bias of up to {largest:.6g}"
        )
    scale = held.scale if values is None or claim.scale is None else claim.scale
    low, high = claim.low / scale, claim.high / scale
    if values is None:
        agree = _is_range(low + held.zero_point, high + held.zero_point, held)
    else:
        # A symmetric range may go without the smallest code.
        slack = 1.5 * scale.max()
        reaches = claim.low.min() - slack <= values.min() and values.max() <= claim.high.max() + slack
        agree = reaches and _is_wide(low, high)
    if agree:
        return None
    ends = [(code - held.zero_point[0]) * held.scale.max() for code in (held.low, held.high)]
    said, known = (f"{a:.6g} to {b:.6g}" for a, b in ((claim.low.min(), claim.high.max()), ends))
    return f"a range from {said}, and {known} in {QUANTIZED}"


def _other_step(given: Numbers, held: ReferenceGrid, values: Numbers | None) -> str | None:
    if 1 != given.size != held.scale.size != 1:
        return f"{given.size} steps, and {held.scale.size} in {QUANTIZED}"
    if np.allclose(given, held.scale, rtol=STEP, atol=0) or (values is not None and _is_raised(given, held, values)):
        return None
    its, right = np.broadcast_arrays(given, held.scale)
    at = int(np.argmax(np.abs(np.log(its / right))))
    return f"a step of {its[at]:.6g}, and {right[at]:.6g} in {QUANTIZED}"


def _is_raised(given: Numbers, held: ReferenceGrid, values: Numbers) -> bool:
    """Return whether `quantized.onnx` alone has wider steps, because int32 would not hold a bias otherwise.

    The weight of `deploy.onnx` then lies on the file's own steps.
    """
    if given.size != held.scale.size or np.any(given > held.scale * (1 + STEP)):
        return False
    if held.bits >= BIAS_BITS:
        largest = np.abs(values.reshape(given.size, -1)).max(axis=1)
        beyond = largest > given * MOST * (1 - STEP)
        return bool(np.all(beyond | np.isclose(given, held.scale, rtol=STEP, atol=0)))
    shape = np.ones(values.ndim, int)
    shape[held.axis] = given.size
    codes = values / given.reshape(shape if given.size > 1 else ())
    return bool(np.abs(codes - np.rint(codes)).max() <= ON_GRID and np.abs(codes).max() <= 1 << held.bits)


def _is_range(low: Numbers, high: Numbers, held: ReferenceGrid) -> bool:
    """Return whether a value's range ends at its codes' limits; a symmetric one may omit the smallest code."""

    def near(code: Numbers, limit: float) -> bool:
        return bool(np.allclose(code, limit, rtol=STEP, atol=ON_GRID))

    return near(high, held.high) and (near(low, held.low) or near(low, held.low + 1))


def _is_wide(low: Numbers, high: Numbers) -> bool:
    """Return whether a constant's ends are codes that span a type of 2 to 16 bits.

    The file may have another zero point than `quantized.onnx`, and a narrower type.
    """
    widths = [(1 << bits) - less for bits in range(2, 17) for less in (1, 2)]
    wide = any(np.allclose(high - low, width, rtol=STEP, atol=ON_GRID) for width in widths)
    return wide and bool(np.allclose(low, np.rint(low), rtol=0, atol=ON_GRID * 10))

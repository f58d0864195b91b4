"""BRECQ: rounding learned block by block (arXiv:2102.05426)."""

from __future__ import annotations

from dipo.algo.steps.reconstruction import Reconstruction


class Brecq(Reconstruction):
    """Reconstruction of blocks."""

    name = "brecq"

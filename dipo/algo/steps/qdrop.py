"""QDrop: BRECQ with activations that are quantized at random (arXiv:2203.05740)."""

from __future__ import annotations

from dipo.algo.steps.reconstruction import Reconstruction


class QDrop(Reconstruction):
    """Reconstruction of blocks, each element of whose activations keeps its float value half of the time."""

    name = "qdrop"
    default_fp_input_prob = 0.5

"""AdaRound: rounding learned layer by layer (arXiv:2004.10568)."""

from __future__ import annotations

from dipo.algo.steps.reconstruction import Reconstruction


class AdaRound(Reconstruction):
    """Reconstruction of single layers, each with the activation function after it."""

    name = "adaround"
    default_unit = "layer"

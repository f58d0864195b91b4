"""The Python interface: `quantize`, and the functions that it is made of, to be used one by one.

    result = dipo.quantize(model, data, algo="qdrop", precision="w4a4", target="trt")

    with dipo.load(model, data, precision="w4a4", target="trt") as network:
        quantized = dipo.apply(dipo.calibrate(network), "qdrop", iters=500)
        report = dipo.evaluate(quantized)
        dipo.export_to(quantized, "out/")

Nothing is printed, no logger is changed, and torch has as many threads afterwards as before. What the user got wrong is
`dipo.UserError`.
"""

from dipo.api.front import quantize
from dipo.api.network import Network, PlannedLayer, load, plan
from dipo.api.quantized import Quantized, apply, calibrate, evaluate, export_to
from dipo.api.result import Result

__all__ = [
    "Network",
    "PlannedLayer",
    "Quantized",
    "Result",
    "apply",
    "calibrate",
    "evaluate",
    "export_to",
    "load",
    "plan",
    "quantize",
]

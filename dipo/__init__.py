"""dipo: distributed post-training quantization of ONNX models.

    import dipo
    result = dipo.quantize("net.onnx", samples, algo="qdrop", precision="w4a4", target="trt")

Importing it is cheap: torch and the others wait until a function is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dipo.errors import JobError, UserError

if TYPE_CHECKING:
    from dipo.api import (
        Network,
        PlannedLayer,
        Quantized,
        Result,
        apply,
        calibrate,
        evaluate,
        export_to,
        load,
        plan,
        quantize,
    )

__version__ = "0.8.0"

__all__ = [
    "JobError",
    "Network",
    "PlannedLayer",
    "Quantized",
    "Result",
    "UserError",
    "__version__",
    "apply",
    "calibrate",
    "evaluate",
    "export_to",
    "load",
    "plan",
    "quantize",
]


def __getattr__(name: str) -> Any:
    """Return a name of `dipo.api`, which brings torch, when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'dipo' has no attribute {name!r}")
    from dipo import api

    found = globals()[name] = getattr(api, name)
    return found


def __dir__() -> list[str]:
    """Return the public names."""
    return __all__

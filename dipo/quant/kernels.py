"""The kernels of `rounding.py`, compiled if a compiler is available."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dipo.quant import rounding

Kernel = Callable[..., Any]

_NAMES = (
    "dequantize_codes", "mix_codes", "mix_floats", "loss_gradient", "shaped_gradient",
    "quantize_forward", "quantize_backward", "rounding_step", "straight_through_step", "adam_step",
)  # fmt: skip


@dataclass(frozen=True)
class Kernels:
    """Callables for the functions of `rounding.py` of the same names that a step calls."""

    dequantize_codes: Kernel
    mix_codes: Kernel
    mix_floats: Kernel
    loss_gradient: Kernel
    shaped_gradient: Kernel
    quantize_forward: Kernel
    quantize_backward: Kernel
    rounding_step: Kernel
    straight_through_step: Kernel
    adam_step: Kernel
    compiled: bool
    fallback: str | None = None
    """Reason why compiled kernels were asked for and eager ones are here; None otherwise."""


def eager(fallback: str | None = None) -> Kernels:
    """Return the uncompiled functions: the same arithmetic, several times slower."""
    functions: dict[str, Any] = {name: getattr(rounding, name) for name in _NAMES}
    return Kernels(**functions, compiled=False, fallback=fallback)


@functools.cache
def compiled(device_type: str, threads: int) -> Kernels:
    """Return compiled kernels for a type of device; eager ones, with the reason, if compilation fails.

    Args:
        device_type: `cpu` or `cuda`.
        threads: Number of CPU threads of the kernels, compiled in and part of the compiler's cache key.
    """
    import torch._dynamo.config as dynamo
    import torch._inductor.config as inductor

    # Each width of unit may need a variant of a kernel. Past the limit the eager functions would take over silently,
    # and results would depend on which units a worker had before.
    dynamo.recompile_limit = dynamo.accumulated_recompile_limit = 1024
    inductor.cpp.threads = threads
    # Ray workers are separate interpreters: a pool of compiler processes in each would outlive its use.
    inductor.compile_threads = 1
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path.home() / ".cache" / "dipo" / "kernels"))
    try:
        probe = torch.compile(torch.neg, dynamic=True)
        probe(torch.zeros(64, device=device_type))
    except Exception as error:  # noqa: BLE001 - whatever keeps the compiler from working, the eager kernels still do
        return eager(next(iter(str(error).strip().splitlines()), type(error).__name__))
    functions: dict[str, Any] = {name: torch.compile(getattr(rounding, name), dynamic=True) for name in _NAMES}
    return Kernels(**functions, compiled=True)

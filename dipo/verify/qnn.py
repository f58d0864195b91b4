"""ONNX Runtime's QNN provider, on the simulator of the HTP that its wheel for x86 has: it reads the QDQ model.

(The wheel has no CPU backend any more.) All nodes must run there: a fall back to the CPU is a refusal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime as ort

from dipo.verify.onnx_network import Network
from dipo.verify.sessions import options, outputs_of
from dipo.verify.verdict import Probe, Refused, State, TensorOutcome, Unavailable, Verdict, asking, require, silence

GET = "pip install onnxruntime-qnn"
PROVIDER = "QNNExecutionProvider"
THREADS = 1
SAMPLES = 8
"""The simulator is slow."""


def check(file: Path, probe: Probe) -> Verdict:
    """Compile a quantized ONNX file for the HTP, and run some samples on its simulator.

    Raises:
        Unavailable: The provider or its simulator is not installed.
        Refused: It does not compile or run the file, or leaves part of it to the CPU.
    """
    package = require("onnxruntime_qnn", get=GET)
    backend = Path(package.get_qnn_htp_path())
    if not backend.is_file():
        raise Unavailable(f"onnxruntime-qnn has no {backend.name} for this machine")
    network = Network.read(file)
    some = Probe(*({name: array[:SAMPLES] for name, array in each.items()} for each in (probe.inputs, probe.outputs)))
    made = _options(network)
    with silence(), asking():
        made.add_provider_for_devices(_devices(package), {"backend_path": str(backend)})
        session = ort.InferenceSession(str(file), made)
        outputs = outputs_of(session, some.inputs, rows=network.batch() or 1)
        if PROVIDER not in session.get_providers():
            raise Refused("the provider could not run it")
    # What does not run on the HTP with the grids of the file is refused as a whole.
    tensors = [TensorOutcome(grid.name, State.ACCEPTED) for grid in network.grids()]
    return Verdict(f"ONNX Runtime's QNN {package.__version__}", file, tensors, some.error_of(outputs))


def _options(network: Network) -> ort.SessionOptions:
    """Return session options with a free batch of 1 (the HTP needs fixed sizes) and without the CPU's fallback."""
    made = options(threads=THREADS)
    made.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    for value in network.inputs():
        for dim in value.type.tensor_type.shape.dim[:1]:
            if dim.dim_param:
                made.add_free_dimension_override_by_name(dim.dim_param, 1)
    return made


def _devices(package: Any) -> list[Any]:
    found = [device for device in ort.get_ep_devices() if device.ep_name == PROVIDER]
    if not found:
        ort.register_execution_provider_library(PROVIDER, package.get_library_path())
        found = [device for device in ort.get_ep_devices() if device.ep_name == PROVIDER]
    return found[:1]

"""dipo: distributed post-training quantization of ONNX models."""

__version__ = "0.3.0"

"""dipo: distributed post-training quantization of ONNX models."""

__version__ = "0.2.0"

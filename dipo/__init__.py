"""dipo: distributed post-training quantization of ONNX models."""

__version__ = "0.4.0"

"""ONNX operators as torch functions, one family per module; `dipo.graph.torch_ops` holds the table."""

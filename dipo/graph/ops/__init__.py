"""ONNX operators as torch functions, one family per module; `dipo.graph.operators` refers to them."""

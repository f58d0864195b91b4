"""The graph: loading, operators as torch functions, units, the quantization plan."""

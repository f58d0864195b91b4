"""Error measures of the quantized network, and their tables."""

"""Writers of quantized models and range files."""

"""Model folder in, tokens and text out. Needs NumPy, ONNX Runtime and tokenizers, nothing more."""

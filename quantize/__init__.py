"""Graph in, quantized graph out: number formats, which tensor gets which, the rewriting pass."""

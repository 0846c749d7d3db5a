"""Graph in, quantized graph out: number formats, which tensor gets which, and the pass that rewrites."""

"""What a model folder costs (speed, memory) and what its precision loses (quality)."""

"""Checkpoint in, ONNX graph out: read a checkpoint, declare its graph, write a model folder."""

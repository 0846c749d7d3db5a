"""Finds, makes and keeps models: a name becomes a model folder, and that an open model."""

"""The models that are served, and the texts that clients wait for."""

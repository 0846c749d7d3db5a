"""Perplexity of models on texts, and how far each parts from the first."""

"""Perplexity of models on texts, and how far each diverges from the first."""

"""Graphs that Optimum traces: made in a child process, checked, simplified, rewritten in place."""

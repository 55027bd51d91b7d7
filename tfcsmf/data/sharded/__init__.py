"""Preparation of logs that do not fit into memory, and training from the result."""

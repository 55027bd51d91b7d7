"""Fusion, indexes and export of trained models."""

"""Metrics of predictions: their registry, computation, bootstrap intervals, and text."""

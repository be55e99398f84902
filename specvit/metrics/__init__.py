"""Scores of predictions, their confidence intervals, and the tables and sentences that show them."""

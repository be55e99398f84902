"""Scores and the ports that engine, baselines, tracking and analysis share."""

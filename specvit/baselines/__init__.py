"""Rivals of the networks that are fitted in one go: same rows, same noise, same scores."""

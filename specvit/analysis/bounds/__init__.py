"""Bounds on the R² that any method can reach on a test set: Cramér-Rao and van Trees."""

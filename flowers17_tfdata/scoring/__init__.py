"""Predictions, scores and statistics, on NumPy and SciPy alone."""

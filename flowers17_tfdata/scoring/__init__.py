"""Predictions, scores and statistics, on NumPy alone."""

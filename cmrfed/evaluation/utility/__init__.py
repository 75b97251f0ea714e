"""Utility: segmenters trained on real and on synthetic data, and their errors."""

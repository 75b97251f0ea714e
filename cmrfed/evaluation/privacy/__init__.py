"""Leakage: memorisation, and membership inference from images and from saved generators."""

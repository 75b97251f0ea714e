"""Cine studies as scanners write them: which series are the short-axis stack, and what of it may be kept."""

"""Synthetic patients from trained generators."""

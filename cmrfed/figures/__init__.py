"""Figures and tables of a study that compares runs: one run for each family of generators."""

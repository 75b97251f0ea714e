"""Secure aggregation (Bonawitz et al., CCS 2017): sums of which the server sees no term."""

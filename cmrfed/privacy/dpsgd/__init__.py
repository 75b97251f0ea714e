"""Patient-level DP-SGD (arXiv 1607.00133): sampling, clipping, noise, step."""

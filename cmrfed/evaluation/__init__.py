"""The evaluator: fidelity, anatomy, memorisation and utility of a synthetic data set, from folders alone."""

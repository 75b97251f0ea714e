"""The server: rounds, strategies, checkpoints, what sites replied and stated."""

"""Families of processes, a file each: the path, and what the network predicts on it."""

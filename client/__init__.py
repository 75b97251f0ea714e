"""Flower client application: one hospital site."""

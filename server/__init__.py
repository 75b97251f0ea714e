"""Flower server application: the coordinator."""

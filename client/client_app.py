"""Flower ClientApp: one site of the federation."""

from cmrfed.federation.client import app

__all__ = ["app"]

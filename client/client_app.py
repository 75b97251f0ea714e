"""Flower ClientApp: one site of the federation."""

from cmrfed.federation.client_app import app

__all__ = ["app"]

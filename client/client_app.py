"""Flower ClientApp: one site of the federation."""

from cmrfed.core.processes import loading

with loading(for_good=True):
    from cmrfed.federation.client_app import app

__all__ = ["app"]

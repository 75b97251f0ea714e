"""Flower ServerApp: the coordinator of a federation; see `cmrfed.server_app`."""

from cmrfed.server_app import app

__all__ = ["app"]

"""Flower ServerApp: the coordinator of a federation; see `cmrfed.pipeline.server_app`."""

from cmrfed.core.processes import loading

with loading(for_good=True):
    from cmrfed.pipeline.server_app import app

__all__ = ["app"]

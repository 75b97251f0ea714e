"""CMRFed: federated generation of synthetic, labelled short-axis cardiac MRI."""

__version__ = "0.1.0"

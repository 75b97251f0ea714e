"""The federation: messages, sites, strategies and the resumable round loop."""

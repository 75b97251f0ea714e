"""Deployment: start-up kits, the coordinator's and the sites' processes, what stands between them."""

"""Differential privacy whose unit is the patient: mechanism, accounting, ledger, policy and audit.

Nothing here knows of diffusion or of federation: a module and a callable that gives one patient's losses are enough.
"""

"""Cohorts of real patients: importers, preparation, verification, splits; the phantom; the synthetic format."""

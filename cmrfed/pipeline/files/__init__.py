"""The files of a run folder: run.json, the catalogue of contents, JSON Schemas."""

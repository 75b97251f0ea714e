"""Sections of settings: base class, strict YAML, validation in words, registries of parts, digests."""

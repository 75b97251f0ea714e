"""Foundations that every other room stands on: whole files, errors, text, randomness, precision, sections."""

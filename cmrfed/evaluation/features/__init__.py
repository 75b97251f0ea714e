"""Feature extractors: images as vectors."""

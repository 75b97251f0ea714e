"""One importer per public layout; each yields patients in the canonical labels."""

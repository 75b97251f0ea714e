"""One part of each kind that CMRFed takes from other distributions."""

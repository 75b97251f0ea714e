"""The privacy of a run: its plan before anything is trained, its audit, and the claim after it."""

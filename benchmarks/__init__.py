"""One script per claim of speed. A package of its own, because Opacus installs another one of this name."""

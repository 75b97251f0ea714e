"""Training of one generator on one cohort: steps, augmentation, loop."""

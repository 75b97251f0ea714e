"""The main job: a recipe in, trained generators, a synthetic data set and its report out."""

"""Configuration: the recipe, the recipes that ship with the package, and the reference of every setting."""

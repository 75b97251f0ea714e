"""Generators: a backbone, a process and a codec behind one class, for masks and for images."""

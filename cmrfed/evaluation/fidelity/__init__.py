"""Fidelity: do the images look real?"""

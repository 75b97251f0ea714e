"""Attacks on saved generators: who was learned from?"""

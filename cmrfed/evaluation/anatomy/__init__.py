"""Anatomy: shapes, volumes and function read off the masks."""

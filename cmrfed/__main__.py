"""Lets `python -m cmrfed` do what `cmrfed` does."""

from cmrfed.cli import main

main()

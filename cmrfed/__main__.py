"""Lets `python -m cmrfed` do what `cmrfed` does."""

from cmrfed.cli.main import main

main()

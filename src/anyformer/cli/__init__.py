"""The command line, a file per verb. Nothing here is imported before it is needed: help answers at once."""

from anyformer.cli.app import main

__all__ = ["main"]

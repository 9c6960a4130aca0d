"""The commands. Each module is one command; real objects are built here and handed down."""

from pilotage.cli.app import main

__all__ = ["main"]

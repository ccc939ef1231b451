"""The command line: the one place where the store, the actors, the backends and the schema tools all meet."""

from eventstore.cli.app import main

__all__ = ["main"]

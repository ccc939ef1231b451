"""The command line: the one place where the store, the actors, the backends and the schema tools all meet."""

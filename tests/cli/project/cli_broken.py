"""A user's module that fails while it is imported."""

raise ValueError("this module is broken")

"""Stored events through the event handlers of an actor."""

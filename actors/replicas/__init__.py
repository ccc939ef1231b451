"""Actors that several replicas change at the same time."""

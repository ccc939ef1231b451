"""Journals and streams into other stores, and as files."""

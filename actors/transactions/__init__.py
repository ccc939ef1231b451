"""Commands to several actors, stored together or not at all."""

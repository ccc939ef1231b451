"""How projections are run: brought forward, rebuilt, watched, and checked to be complete."""

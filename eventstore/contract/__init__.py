"""The words that the store and its backends speak with each other. `eventstore.backend` has them all."""

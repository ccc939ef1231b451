"""Real servers for the tests, and a proxy that makes the network between them fail."""

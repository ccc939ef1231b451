"""How the store calls its backend: many callers at once, guarded, and with an outcome in the end."""

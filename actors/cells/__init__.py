"""A live actor in memory: its phases, its mailbox, and what it has decided on its way into the journal."""

"""How the log is read: page after page, ahead of its reader, and past what is damaged."""

"""What an actor was, who changed it, and when it broke: states out of the journal, with nothing made live."""

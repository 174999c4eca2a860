"""Images in folders, lists and tables become shuffled source tars; imports no torch."""

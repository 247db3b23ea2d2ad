"""Whether anything is missing from the log."""

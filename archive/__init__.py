"""What a log entry is, and the readers of what was shipped."""

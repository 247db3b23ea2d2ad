"""``logs view``: the log as pages that people read and link to."""

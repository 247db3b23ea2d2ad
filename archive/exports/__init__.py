"""Training sets and tables out of the log."""

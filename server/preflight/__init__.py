"""What is checked before and after a start, for `serve` and for `check`."""

"""The lines of the log: their fields, what of a call goes into them, and where they are put."""

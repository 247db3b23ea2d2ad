"""``logs compact``: a day's objects as Parquet tables."""

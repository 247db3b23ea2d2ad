"""The log as tables: DuckDB views over raw objects and compacted days."""

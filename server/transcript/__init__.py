"""What a provider said, read from the same bytes that pass to the client."""

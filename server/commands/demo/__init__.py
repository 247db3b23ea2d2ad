"""`open-llm-proxy demo`: the real server in front of a provider of its own."""

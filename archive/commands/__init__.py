"""``open-llm-proxy logs …``: one small file for each of its commands."""

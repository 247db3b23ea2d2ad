"""`open-llm-proxy replay` and `queue`: care of queues whose server is gone."""

"""`open-llm-proxy logs`: a reader of the log for people without SQL at hand."""

"""The request path: HTTP in, provider out, log entries made and handed to the queue."""

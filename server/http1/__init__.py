"""The clients' side of HTTP/1.1 (RFC 9112): connections, requests, answers, the server."""

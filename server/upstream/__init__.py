"""The client for providers: an AsyncHTTPClient of its own, useful to other Tornado programs too."""

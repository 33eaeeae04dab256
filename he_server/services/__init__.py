"""The server's use cases, without HTTP."""

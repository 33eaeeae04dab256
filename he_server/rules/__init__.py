"""The server's rules: pure functions and records. They import nothing else of the server."""

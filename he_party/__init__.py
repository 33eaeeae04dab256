"""What clients, key holders, the authority and the server share as parties: files, keys, HTTP, settings."""

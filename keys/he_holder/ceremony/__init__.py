"""The committee's key ceremony: its messages, and a run of it over the server's board."""

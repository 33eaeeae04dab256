"""`he-server`."""

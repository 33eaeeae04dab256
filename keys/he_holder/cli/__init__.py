"""`he-holder`."""

"""Each module of he_protocol on its own: known values, refusals, and the attack behind each check."""

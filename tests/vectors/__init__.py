"""Known answers for everything that travels: `good_*.json` must be accepted, `bad_*.json` refused."""

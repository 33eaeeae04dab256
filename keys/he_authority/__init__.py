"""The authority: an offline key that enrols parties, signs task configurations, and revokes keys."""

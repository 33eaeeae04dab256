"""The authority: an offline key that enrolls parties, signs task configurations, and revokes keys."""

"""`kill -9` at random moments, and an account of every update afterwards."""

"""What every implementation of a seam has to do: one suite for each Protocol, run on all that implement it."""

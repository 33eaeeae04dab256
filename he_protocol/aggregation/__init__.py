"""How a round's updates become a mean: weights, and the combination of buckets, by the names in a signed task."""

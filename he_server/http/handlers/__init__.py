"""HTTP handlers: decode, call, encode. Rules live elsewhere."""

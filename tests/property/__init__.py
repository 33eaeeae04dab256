"""he_protocol's kernels against slow plain Python, and its parsers against arbitrary bytes."""

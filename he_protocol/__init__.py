"""The public half of HushSum: parameters, messages, and kernels that need no secret.

Nothing here does I/O or reads a clock, and nothing here needs (or may see) a secret key.
"""

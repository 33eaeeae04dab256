"""The seam between HushSum and an encryption scheme.

A scheme is one module here (its public half), one of the same name in `he_client.schemes` (encryption)
and one in `he_holder.schemes` (opening). Each such module here names its `PROFILES`; `registry` finds it,
and nothing else in the project knows which schemes exist. `scheme` says what one is.
"""

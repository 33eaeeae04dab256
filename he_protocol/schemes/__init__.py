"""The seam between HushSum and an encryption scheme.

A scheme has a public half, one for clients (encryption) and one for key holders (opening): ours are modules of one name
here, in `he_client.schemes` and in `he_holder.schemes`. An installed distribution declares them as entry points, in the
groups `hushsum.schemes`, `hushsum.client_schemes` and `hushsum.holder_schemes`. `registry` finds them, and nothing
else in the project knows which schemes exist. `scheme` says what one is.
"""

"""Who speaks: signatures, credentials, proofs of requests, revocation."""

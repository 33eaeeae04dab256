"""Identity of parties: signatures, credentials, request proofs, revocation."""

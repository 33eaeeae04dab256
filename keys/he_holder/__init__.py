"""A key holder: the key ceremony, the rules by which it votes, its ledger, and opening sums.

A key holder makes outbound requests only, and decides for itself what it opens (`he_holder.rules`).
"""

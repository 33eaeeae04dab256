"""The authority and the key holders: enrolment, the key ceremony, and opening sums.

A key holder makes outbound requests only, and decides for itself what it opens (`he_holder.rules`).
"""

"""Differential privacy: plans, accounting, quantisation, noise."""

"""Compiled arithmetic that all inference shares: decays, noise, triangular matrices, searches for modes."""

"""Simulated regions, phantoms and studies whose true values are known."""

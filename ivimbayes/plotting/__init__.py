"""Plots: results in, matplotlib axes out."""

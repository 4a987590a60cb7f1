"""The report: one self-contained page from a fit."""

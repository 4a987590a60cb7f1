"""The posterior of a single curve that no region informs."""

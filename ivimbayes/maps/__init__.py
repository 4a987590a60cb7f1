"""Maps: the posterior of every voxel of a volume, block by block."""

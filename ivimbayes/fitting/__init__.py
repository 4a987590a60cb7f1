"""The posterior of a region by NUTS: choice of voxels, starting points, sampling, checkpoints."""

"""The posterior of one voxel given its population: importance sampling, compiled."""

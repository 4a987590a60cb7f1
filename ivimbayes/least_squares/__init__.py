"""Least-squares fits of every voxel."""

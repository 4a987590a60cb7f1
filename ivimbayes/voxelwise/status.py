"""The status of a mapped voxel, and the limits that decide it."""

SPACE = ("x", "y", "z")


MAPPED = ("f", "D", "D_star", "S0")


STATUS = {"outside": 0, "ok": 1, "doubtful": 2, "failed": 3, "bad_signal": 4}


K_FAILED, K_DOUBTFUL, FEW_DRAWS = 1.0, 0.7, 100

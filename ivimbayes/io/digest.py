"""Digests of the package's own code, which say whether stored work was made by the same code."""

import hashlib
from functools import cache
from importlib.metadata import version
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
COMPUTED_BY = ("nutpie", "numba", "numpy", "scipy")
# Wings that hold compiled functions, or constants that end up in their machine code.
COMPILED = ("models", "numerics", "voxelwise", "curves", "fitting", "least_squares", "cohorts")


def _digest(*folders: str) -> str:
    """Digest of every Python file below some folders of the package, names included."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted((PACKAGE / folder).rglob("*.py")):
            digest.update(f"\n{path.relative_to(PACKAGE).as_posix()}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


@cache
def code_digest() -> str:
    """Digest of every Python file of the package, and of the releases of the packages that compute."""
    releases = " ".join(version(name) for name in COMPUTED_BY)
    return hashlib.sha256((releases + _digest("")).encode()).hexdigest()


@cache
def compiled_digest() -> str:
    """Digest of every Python file of the wings that hold compiled functions."""
    return _digest(*COMPILED)

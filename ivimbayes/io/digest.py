"""Digest of the package's own code, which says whether stored work was made by the same code."""

import hashlib
from functools import cache
from importlib.metadata import version
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
COMPUTED_BY = ("nutpie", "numba", "numpy", "scipy")


@cache
def code_digest() -> str:
    """Digest of every Python file of the package, and of the releases of the packages that compute."""
    digest = hashlib.sha256(" ".join(version(name) for name in COMPUTED_BY).encode())
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"\n{path.relative_to(PACKAGE).as_posix()}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()

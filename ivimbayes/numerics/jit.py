"""Compiled functions: the decorators, and a cache that notices a change in any compiled file.

numba keeps machine code for each function and drops it when the function's own file changes. The code also
contains what the function calls, so numba would not notice a change in the file of a callee. Here the cache
of every function carries the digest of all files of the package instead.

Use `jit` for functions that work on arrays they are given, `sum_jit` for sums whose terms may be added in any
order (it may lose the sign of a zero, never a NaN), and `allocating_jit` for functions that make arrays.

Passing arrays between compiled functions increments their reference counts atomically, which cost a third of
the maps' time. ``_nrt=False``, an option of numba, turns the counting off. A function compiled this
way must neither allocate an array nor return one, nor call a function that returns one. If it does, numba
says "No implementation of function Function(<built-in function empty>) found", or "Only accept returning of
array passed into the function as argument". Use `allocating_jit` there.
"""

from collections.abc import Callable
from pickle import UnpicklingError
from typing import Any

import numba as nb
from numba.core.caching import FunctionCache, IndexDataCacheFile

from ivimbayes.io.digest import code_digest


class PackageIndex(IndexDataCacheFile):  # type: ignore[misc, unused-ignore]
    """Index of a function's machine code.

    numba unpickles an index before it looks at its stamp, and signatures name classes of the package. An index of
    another state of the code may name a class that is gone; like a damaged one, it counts as empty.
    """

    def _load_index(self) -> Any:
        try:
            return super()._load_index()
        except (AttributeError, ImportError, EOFError, TypeError, ValueError, UnpicklingError):
            return {}


class PackageCache(FunctionCache):  # type: ignore[misc, unused-ignore]
    """Machine code of one function, valid for one state of the package's code."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._cache_file = PackageIndex(self.cache_path, self._impl.filename_base, code_digest())


def can_keep() -> bool:
    """Whether numba finds a folder for compiled code: beside this file, or the user's cache."""
    try:
        PackageCache(can_keep)
    except RuntimeError:
        return False
    return True


KEEP = can_keep()


def _decorator(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Make a decorator that compiles a function at its first call and keeps the machine code."""

    def decorate(function: Callable[..., Any]) -> Any:
        compiled = nb.njit(error_model="numpy", nogil=True, **options)(function)
        if KEEP:
            compiled._cache = PackageCache(function)
        return compiled

    return decorate


def c_function(signature: Any, function: Callable[..., Any]) -> Any:
    """Compile a function that a C program calls by its ``address``."""
    from numba.core.ccallback import CFunc
    from numba.core.sigutils import normalize_signature

    compiled = CFunc(function, normalize_signature(signature), locals={}, options={})
    if KEEP:
        compiled._cache = PackageCache(function)  # type: ignore[attr-defined]
    compiled.compile()
    return compiled


jit = _decorator(fastmath={"contract"}, _nrt=False)
sum_jit = _decorator(fastmath={"contract", "reassoc", "nsz"}, _nrt=False)
allocating_jit = _decorator(fastmath={"contract"}, _nrt=True)

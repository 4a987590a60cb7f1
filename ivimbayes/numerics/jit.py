"""Compiled functions: the decorators, and a cache that notices a change in any compiled file.

**Four decorators for functions that numba compiles into their callers.** `jit` is for functions that work on
arrays they are given, `inlined_jit` for those so short that handing over their arrays would cost as much as
their work, `sum_jit` for sums whose terms may be added in any order (it may lose the sign of a zero, never a
NaN), and `allocating_jit` for functions that make arrays.

Passing arrays between compiled functions increments their reference counts atomically, which cost a third of
the maps' time. ``_nrt=False``, an option of numba, turns the counting off. A function compiled this way must
neither allocate an array nor return one, nor call a function that returns one. If it does, numba says "No
implementation of function Function(<built-in function empty>) found", or "Only accept returning of array
passed into the function as argument". Use `allocating_jit` there. numba does not notice arrays that are
returned in a tuple, and frees them too early; a slow test looks for such functions.

**One for functions that are compiled apart.** numba links a copy of each callee into its caller and optimises
it again there: through five levels of calls, the same code is compiled five times. `separate` compiles a
function once; its callers load its address when they run. The signature comes from the annotations (`int`,
`float`, the array types below, or a NamedTuple of these). Such a function must be loaded before a caller
runs: `load` finds all that a function needs, except those that are ``optional``, which the program loads when
it knows that the data need them. Each is compiled without the others, so `load` shares what is not kept yet
between this process and one beside it.

**A cache for all of them.** numba keeps machine code for each function and drops it when the function's own
file changes. The code also contains what the function calls, and constants of other modules, so numba would
not notice a change in those. Here the cache of every function carries the digest of all compiled files
instead.
"""

import ctypes
import importlib
import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pickle import UnpicklingError
from threading import Lock
from typing import Annotated, Any, Self, get_args, get_type_hints

import llvmlite.binding as llvm
import numba as nb
import numpy as np
from llvmlite import ir
from numba import types
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.ccallback import CFunc
from numba.core.typing import signature
from numba.extending import intrinsic

from ivimbayes.io.digest import PACKAGE, compiled_digest
from ivimbayes.parallel import count_cores

_Numbers = np.ndarray[Any, np.dtype[np.float64]]
Vector = Annotated[_Numbers, types.float64[::1]]
Matrix = Annotated[_Numbers, types.float64[:, ::1]]
Cube = Annotated[_Numbers, types.float64[:, :, ::1]]
Cubes = Annotated[_Numbers, types.float64[:, :, :, ::1]]
Flags = Annotated[np.ndarray, types.boolean[::1]]
Integers = Annotated[np.ndarray, types.int64[::1]]
Places = Annotated[np.ndarray, types.int32[::1]]


class PackageIndex(IndexDataCacheFile):  # type: ignore[misc, unused-ignore]
    """Index of a function's machine code.

    numba unpickles an index before it looks at its stamp, and signatures name classes of the package. An
    index of another state of the code may name a class that is gone; like a damaged one, it counts as empty.
    """

    def _load_index(self) -> Any:
        try:
            return super()._load_index()
        except (AttributeError, ImportError, EOFError, TypeError, ValueError, UnpicklingError):
            return {}


class PackageCache(FunctionCache):  # type: ignore[misc, unused-ignore]
    """Machine code of one function, valid for one state of the compiled files."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._cache_file = PackageIndex(self.cache_path, self._impl.filename_base, compiled_digest())


def can_keep() -> bool:
    """Whether numba finds a folder for compiled code: beside this file, or the user's cache."""
    try:
        PackageCache(can_keep)
    except RuntimeError:
        return False
    return True


KEEP = can_keep()
OPTIONS = {"error_model": "numpy", "nogil": True}
SHARED = 4  # functions to compile from which on a second process, whose start takes 2 s, is worth it


def _decorator(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Make a decorator that compiles a function at its first call and keeps the machine code."""

    def decorate(function: Callable[..., Any]) -> Any:
        compiled = nb.njit(**OPTIONS, **options)(function)
        if KEEP:
            compiled._cache = PackageCache(function)
        return compiled

    return decorate


jit = _decorator(fastmath={"contract"}, _nrt=False)
inlined_jit = _decorator(fastmath={"contract"}, _nrt=False, forceinline=True)
sum_jit = _decorator(fastmath={"contract", "reassoc", "nsz"}, _nrt=False)
allocating_jit = _decorator(fastmath={"contract"}, _nrt=True)


class _Compiled(CFunc):  # type: ignore[misc, unused-ignore]
    """A compiled function with two addresses: for C programs, and ``native`` for functions of numba.

    The second takes its arguments as numba passes them, which spares a copy of all of them at each call.
    """

    @property
    def native(self) -> int:
        """Address for functions of numba."""
        name = self.native_name.removeprefix("cfunc.")  # the function that the C wrapper calls
        return int(self._library.get_pointer_to_function(name))  # type: ignore[attr-defined]


def c_function(function: Callable[..., Any], kind: Any, arguments: tuple[Any, ...], **options: Any) -> Any:
    """Compile a function, or load it, that others call by its ``address``; `kind` is the type it returns."""
    compiled = _Compiled(function, (arguments, kind), locals={}, options=OPTIONS | options)
    if KEEP:
        compiled._cache = PackageCache(function)  # type: ignore[attr-defined]
    compiled.compile()
    return compiled


# ---------------------------------------------------------------- functions that are compiled apart

_lock, _loading = Lock(), Lock()
PATIENCE = 600.0  # seconds that a process beside this one may take


class Separate:
    """A function that is compiled by itself; see `separate`.

    Attributes
    ----------
    function : callable
        The function in Python.
    call : object
        What stands for the function in compiled code.
    """

    def __init__(self, function: Callable[..., Any], allocates: bool, optional: bool) -> None:
        self.function, self.allocates, self.optional = function, allocates, optional
        self.symbol = f"{function.__module__}.{function.__qualname__}"
        self._compiled: Any = None
        self._cell = ctypes.c_void_p(ctypes.cast(_missing, ctypes.c_void_p).value)
        llvm.add_symbol(self.symbol, ctypes.addressof(self._cell))
        self.call = self._intrinsic()

    @property
    def loaded(self) -> bool:
        """Whether callers may run."""
        return self._compiled is not None

    @property
    def kept(self) -> bool:
        """Whether there is machine code of it from before."""
        return KEEP and bool(PackageCache(self.function)._cache_file._load_index())

    @property
    def size(self) -> int:
        """Length of the bytecode that is compiled with it, to share work by."""
        seen: set[int] = set()

        def measure(function: Callable[..., Any]) -> int:
            seen.add(id(function))
            names = (function.__globals__.get(name) for name in function.__code__.co_names)
            inner = [item.py_func for item in names if item is not None and hasattr(item, "py_func")]
            return len(function.__code__.co_code) + sum(measure(f) for f in inner if id(f) not in seen)

        return measure(self.function)

    @property
    def types(self) -> tuple[Any, tuple[Any, ...]]:
        """The numba types of result and arguments."""
        hints = get_type_hints(self.function, include_extras=True)
        kind = hints.pop("return")
        return numba_type(kind), tuple(numba_type(hint) for hint in hints.values())

    def load(self) -> None:
        """Compile the function, or load what was kept, and let callers find it."""
        with _lock:
            if self._compiled is None:
                kind, arguments = self.types
                self._compiled = c_function(
                    self.function, kind, arguments, fastmath={"contract"}, _nrt=self.allocates
                )
                self._cell.value = self._compiled.native

    def _intrinsic(self) -> Any:
        symbol = self.symbol

        def typed(context: Any, *given: Any) -> Any:
            kind, arguments = self.types

            def generate(context: Any, builder: Any, found: Any, values: Any) -> Any:
                convention = context.call_conv
                shape = convention.get_function_type(kind, arguments)
                cell = builder.module.globals.get(symbol)
                if cell is None:
                    cell = ir.GlobalVariable(builder.module, shape.as_pointer(), symbol)
                status, result = convention.call_function(
                    builder, builder.load(cell), kind, arguments, values
                )
                with builder.if_then(status.is_error, likely=False):
                    convention.return_status_propagate(builder, status)
                return result

            return signature(kind, *arguments), generate

        first = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = inspect.signature(self.function).parameters.values()
        typed.__signature__ = inspect.Signature([first, *parameters])  # type: ignore[attr-defined]
        typed.__name__, typed.__doc__ = self.function.__name__, self.function.__doc__
        typed.__module__, typed.__qualname__ = self.function.__module__, self.function.__qualname__
        call = intrinsic(typed)
        _separate[id(call)] = self
        _by_symbol[self.symbol] = self
        return call


_separate: dict[int, Separate] = {}
_by_symbol: dict[str, Separate] = {}


@ctypes.CFUNCTYPE(None)
def _missing() -> None:
    """Stand for a function that was not loaded: end the process, since no result would be right."""
    os.write(
        2, b"ivimbayes: a compiled function was called before it was loaded; this is a fault of ivimbayes\n"
    )
    os.abort()


def separate(*, allocates: bool = False, optional: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function apart from its callers, with the signature that its annotations give.

    Parameters
    ----------
    allocates : bool
        Whether it makes arrays.
    optional : bool
        Whether `load` of a caller passes it over.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        return Separate(function, allocates, optional).call

    return decorate


def separate_of(call: Any) -> Separate | None:
    """Give the `Separate` behind what `separate` made of a function; None for anything else."""
    return _separate.get(id(call))


def numba_type(hint: Any) -> Any:
    """Numba's type for an annotation.

    Raises
    ------
    TypeError
        If the annotation is none of `int`, `float`, `bool`, None, the array types, or a NamedTuple of these.
    """
    plain = {int: types.int64, float: types.float64, bool: types.boolean, type(None): types.none}
    if hint in plain:
        return plain[hint]
    if hasattr(hint, "__metadata__"):
        return get_args(hint)[1]
    if isinstance(hint, type) and issubclass(hint, tuple) and hasattr(hint, "_fields"):
        hints = get_type_hints(hint, include_extras=True)
        return types.BaseTuple.from_types([numba_type(hints[name]) for name in hint._fields], hint)
    if get_args(hint):
        return types.BaseTuple.from_types([numba_type(part) for part in get_args(hint)])
    raise TypeError(f"{hint} has no compiled type")


def needed(function: Any) -> list[Separate]:
    """Functions compiled apart that a function calls, directly or through others, optional ones left out.

    Those that are called come before their callers.
    """
    found: dict[int, Separate] = {}
    seen: set[int] = set()

    def visit(item: Any) -> None:
        if id(item) in seen:
            return
        seen.add(id(item))
        part = separate_of(item)
        python = (
            part.function if part else getattr(item, "py_func", item if inspect.isfunction(item) else None)
        )
        if python is None:
            return
        for name in python.__code__.co_names:
            inner = python.__globals__.get(name)
            apart = separate_of(inner)
            if (apart and not apart.optional) or (apart is None and hasattr(inner, "py_func")):
                visit(inner)
        if part:
            found[id(part)] = part

    visit(function)
    return list(found.values())


class Beside:
    """A process that compiles functions and keeps their machine code, while this one does other work.

    Parameters
    ----------
    parts : sequence of Separate
        What to compile. Nothing is started if there is nothing, or if compiled code cannot be kept.
    """

    def __init__(self, parts: Sequence[Separate]) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        if not (KEEP and parts and sys.executable) or getattr(sys, "frozen", False):
            return
        code = (
            f"import sys; sys.path.append({str(PACKAGE.parent)!r}); "
            "from ivimbayes.numerics.jit import compile_symbols; compile_symbols(sys.argv[1:])"
        )
        with suppress(OSError, ValueError):  # no process to be had: all is compiled here
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", code, *(part.symbol for part in parts)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

    def wait(self) -> None:
        """Wait for its end. What it did not keep, for whatever reason, is compiled here when it is loaded."""
        if self.process is not None:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def compile_symbols(symbols: Sequence[str]) -> None:
    """Compile and keep functions that are compiled apart, by their symbols; run by `Beside`."""
    for symbol in symbols:
        importlib.import_module(symbol.rpartition(".")[0])
        _by_symbol[symbol].load()


def missing(*functions: Any) -> list[Separate]:
    """Functions compiled apart that some functions need and that are not kept, largest first."""
    parts = {part.symbol: part for function in functions for part in needed(function)}
    found = [part for part in parts.values() if not (part.loaded or part.kept)]
    return sorted(found, key=lambda part: -part.size)


def load(*functions: Any, alone: bool = False) -> None:
    """Load what functions need of those that are compiled apart, after compiling what is not kept.

    Parameters
    ----------
    *functions : callable
        Compiled functions.
    alone : bool
        Compile all in this process, since another one is compiling beside it.
    """
    with _loading:  # threads that need the same wait for it
        absent = missing(*functions)
        theirs: list[Separate] = []
        if not alone and len(absent) >= SHARED and count_cores() > 1:
            shares: tuple[list[Separate], list[Separate]] = ([], [])
            for part in absent:
                min(shares, key=lambda share: sum(p.size for p in share)).append(part)
            absent, theirs = shares
        with Beside(theirs) as beside:
            for part in absent:
                part.load()
            beside.wait()
        for function in functions:
            for part in needed(function):
                part.load()

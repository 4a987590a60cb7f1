"""Results folder of a command: one run at a time, put in place whole, left as it was if nothing came of it.

Results are written into a folder of their own (`NEW`). When all are there it is renamed (`READY`): from then
on they are the results, whose files only have to be moved. A run that is ended meanwhile is completed by the
next command that writes there. Modules that take long to import are imported where they are used.
"""

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer
from filelock import BaseFileLock, FileLock, Timeout

from ivimbayes.errors import InputError

CHECKPOINT, STORE = ".ivimbayes-regions", ".ivimbayes-maps"  # unfinished work
NEW, READY, LOCK = ".ivimbayes-new", ".ivimbayes-ready", ".ivimbayes-lock"
REMOVED = ".ivimbayes-removed"
MANIFEST = "manifest.json"
UNFINISHED = {CHECKPOINT: "ivimbayes fit, demo or calibrate", STORE: "ivimbayes map"}
RESULTS, MAPS = ("posterior.nc", "summary.tsv", "truth.tsv", "report.html"), "maps"
EXIT_INTERRUPTED = 130
LOCK_SECONDS = 0.2  # a run that ends removes its lock file: another may have to open the file once more


class OutFolder:
    """The results folder: made if need be, refused if not empty, gone again if nothing came of it.

    Parameters
    ----------
    path : path
        The folder.
    overwrite : bool
        Whether results there may be replaced.
    work : str, optional
        Name of the command's own unfinished work in the folder, which it continues: `CHECKPOINT` or `STORE`.
    """

    def __init__(self, path: Path, overwrite: bool, work: str | None = None):
        self.path, self.overwrite, self.work = path, overwrite, work
        self.made: list[Path] = []
        self.lock: BaseFileLock | None = None
        self.finished = False

    @property
    def new(self) -> Path:
        """Where results are written until all are there."""
        path = self.path / NEW
        path.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def unfinished(self) -> Path:
        """The command's own unfinished work."""
        assert self.work is not None
        return self.path / self.work

    def __enter__(self) -> "OutFolder":
        path = self.path
        try:
            self.made = [p for p in (path, *path.parents) if not p.exists()]
            path.mkdir(parents=True, exist_ok=True)
            for name in (*UNFINISHED, NEW, READY, LOCK, REMOVED, f".{STORE}.unfinished"):
                if (path / name).is_symlink():
                    raise InputError(f"{path / name}: a link, where ivimbayes keeps its own work; remove it")
            self.lock = _lock(path)
            if (path / READY).exists():
                put_in_place(path)
                typer.echo(f"ivimbayes: the results of an earlier run are now in place in {path}", err=True)
            for left in (path / NEW, path / REMOVED, path / f".{STORE}.unfinished"):
                shutil.rmtree(left, ignore_errors=True)
            parts = [p for p in path.glob(".part-*") if p.is_file()]  # of a run that was killed
            ours = {LOCK, self.work, *(p.name for p in parts)}
            self._refuse(sorted(p.name for p in path.iterdir() if p.name not in ours))
            for part in parts:
                part.unlink(missing_ok=True)
        except InputError:
            self._close()
            raise
        except OSError as error:
            self._close()
            raise InputError(
                f"{path}: cannot be written ({error.strerror}); name another folder with --out"
            ) from None
        return self

    def _refuse(self, entries: list[str]) -> None:
        """Refuse a folder that holds something, unless it may be replaced."""
        path = self.path
        if self.overwrite or not entries:
            return
        if {"posterior.nc", "summary.tsv"} <= set(entries):
            raise InputError(
                f"{path}: the folder holds a finished fit (ivimbayes summary {path} prints it); "
                "name another with --out, or replace it with --overwrite"
            )
        for name in entries:
            if name in UNFINISHED:
                raise InputError(
                    f"{path}: the folder holds unfinished work of {UNFINISHED[name]}; name another with --out"
                )
        raise InputError(
            f"{path}: the folder is not empty (holds {entries[0]}); "
            "name another with --out, or replace its results with --overwrite"
        )

    def finish(self, replaced: set[str]) -> None:
        """Put the new results in place of those named, of whatever earlier run; other files stay.

        From the moment that this renames the folder of new results they count, even if the run is ended then.
        """
        new = self.new
        moved = sorted(_entries(new))
        maps = self.path / MAPS
        if (new / MAPS).is_dir() and maps.exists() and not maps.is_dir():
            raise InputError(f"{maps}: a file is there; move it away, and run again")
        plain = {"moved": moved, "stale": sorted(replaced - set(moved)), "work": self.work}
        (new / MANIFEST).write_text(json.dumps(plain), encoding="utf-8")
        shutil.rmtree(self.path / READY, ignore_errors=True)
        new.rename(self.path / READY)
        self.finished = True
        put_in_place(self.path)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, KeyboardInterrupt):
            if self.finished:
                put_in_place(self.path)
                words = f"after the results were written to {self.path}"
            else:
                words = "the same command continues with what is finished"
                if kept := getattr(error, "kept", ""):
                    words += f"; ivimbayes summary {kept} shows the draws so far"
            self._close()
            typer.echo(f"ivimbayes: interrupted; {words}", err=True)
            raise typer.Exit(EXIT_INTERRUPTED)
        self._close()

    def _close(self) -> None:
        """Remove what is of no use, and the lock."""
        path = self.path
        if self.lock is not None:
            shutil.rmtree(path / NEW, ignore_errors=True)
            if self.work == CHECKPOINT and not list((path / CHECKPOINT).glob("*.nc")):
                shutil.rmtree(path / CHECKPOINT, ignore_errors=True)
            if self.work == STORE and not any((path / STORE / "blocks_done").glob("c/**/*")):
                shutil.rmtree(path / STORE, ignore_errors=True)
            if os.name == "posix":  # while it is held; on Windows filelock removes it
                with suppress(OSError):
                    (path / LOCK).unlink(missing_ok=True)
            self.lock.release()
            self.lock = None
        for made in self.made:
            with suppress(OSError):  # not empty
                made.rmdir()


def _lock(folder: Path) -> BaseFileLock:
    """Lock a folder for this process; on a disk that has no locks, make the lock file only."""
    path = folder / LOCK
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        raise InputError(
            f"{folder}: another run of ivimbayes writes there; wait for it, or name another with --out"
        ) from None
    except OSError:
        path.touch()  # where this fails too, the folder cannot be written
    return lock


def _entries(new: Path) -> list[str]:
    """List what is to be moved: files and folders, of maps each file by itself."""
    names = []
    for path in new.iterdir():
        within = [f"{MAPS}/{p.name}" for p in path.iterdir()] if path.name == MAPS else [path.name]
        names += within
    return names


def put_in_place(folder: Path) -> None:
    """Move finished results into a folder, and remove what they replace; doing it twice does no harm."""
    ready = folder / READY
    try:
        plain = json.loads((ready / MANIFEST).read_text(encoding="utf-8"))
        moved, stale, work = list(plain["moved"]), list(plain["stale"]), plain["work"]
        for name in (*moved, *stale):
            *above, last = Path(name).parts
            if above not in ([], [MAPS]) or last == "..":
                raise ValueError(f"it names {name!r}")
        if work is not None and work not in UNFINISHED:
            raise ValueError(f"it names {work!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        if (ready / MANIFEST).exists():
            raise InputError(f"{ready}: not to be understood ({error}); move it away") from None
        shutil.rmtree(ready, ignore_errors=True)  # all moved; it was being removed
        return
    for name in stale:
        _remove(folder / name)
    for name in moved:
        if (ready / name).exists():
            target = folder / name
            target.parent.mkdir(exist_ok=True)
            if (target.is_dir() and not target.is_symlink()) or (ready / name).is_dir():
                _remove(target)
            (ready / name).replace(target)
    if work is not None:
        _remove(folder / work)
    (ready / MANIFEST).unlink()
    shutil.rmtree(ready, ignore_errors=True)


def _remove(path: Path) -> None:
    """Remove a file, or a folder in one step: none that is half gone keeps its name."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    gone = path.with_name(REMOVED)
    shutil.rmtree(gone, ignore_errors=True)
    path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)

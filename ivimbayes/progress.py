"""Progress of a fit, a bar for each region, of maps, and of other counts, in a terminal or a notebook."""

import math
import time
from collections.abc import Callable
from importlib.util import find_spec
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ivimbayes.parallel import count_cores

FEW = 20  # regions that have bars at a time
SECONDS = 1.1  # to compile one function


def compiling(what: str, count: int) -> str:
    """Say that functions are compiled, and for how long."""
    seconds = 5 * math.ceil(SECONDS * count / min(2, count_cores()) / 5)
    return f"compiling {what}, once on a machine: {count} functions, about {seconds} s"


def _console() -> Console:
    """Give the console of a terminal or a notebook; rich draws in notebooks by ipywidgets."""
    console = Console(stderr=True)
    if console.is_jupyter and find_spec("ipywidgets") is None:
        console = Console(stderr=True, force_jupyter=False)
    return console


class _Bars:
    """Bars that are shown while a block runs."""

    def __init__(self, *columns: ProgressColumn, show: bool):
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            *columns,
            TextColumn("{task.fields[stage]}", markup=False),
            console=_console(),
            disable=not show,
        )

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()


class FitProgress(_Bars):
    """Bars that count draws, over all chains of a region; in a log file, lines when all are done.

    Of more regions than `FEW`, a bar counts them, and those at work have one of their own.
    """

    def __init__(self, regions: list[str], total: int, show: bool):
        super().__init__(TimeElapsedColumn(), show=show)
        many = len(regions) > FEW
        self.all = self.progress.add_task("regions", total=len(regions), stage="") if many else None
        self.ids = {
            name: self.progress.add_task(name, total=total, stage="waiting", start=False, visible=not many)
            for name in regions
        }
        self.finished: dict[str, dict[int, tuple[int, int]]] = {name: {} for name in regions}

    def stage(self, region: str, stage: str) -> None:
        """Say what is being done for a region."""
        self.progress.update(self.ids[region], stage=stage)
        if self.all is not None:
            self.progress.update(self.all, stage=f"{region}: {stage}")

    def compile(self, region: str, count: int) -> None:
        """Say that functions are compiled before any region is sampled; the region's clock shows the time."""
        self.progress.start_task(self.ids[region])
        self.stage(region, compiling("the density", count))

    def begin(self, region: str, total: int) -> None:
        """Start the bar of a region from zero."""
        self.finished[region] = {}
        self.progress.start_task(self.ids[region])
        self.progress.update(self.ids[region], total=total, completed=0, visible=True)

    def done(self, region: str, stage: str = "done") -> None:
        """Fill the bar of a region and stop its clock."""
        task = self.ids[region]
        self.progress.start_task(task)
        total = self.progress.tasks[task].total
        self.progress.update(task, completed=total, stage=stage, visible=self.all is None)
        self.progress.stop_task(task)
        if self.all is not None:
            self.progress.update(self.all, advance=1, stage="")

    def callback(self, region: str, chain: int) -> Callable[[Any], None]:
        """Make the function that a sampler calls with the progress of its one chain."""

        def update(chains: Any) -> None:
            counts = self.finished[region]
            counts[chain] = (sum(c.finished_draws for c in chains), sum(c.divergences for c in chains))
            done, divergent = (sum(column) for column in zip(*list(counts.values()), strict=True))
            stage = "sampling" + (f", {divergent} divergent" if divergent else "")
            self.progress.update(self.ids[region], completed=done, stage=stage)

        return update


class MapProgress(_Bars):
    """A bar that counts voxels, with their rate and the time left."""

    def __init__(self, total: int, done: int, show: bool):
        rate = TextColumn("{task.fields[rate]}", markup=False)
        super().__init__(rate, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), show=show)
        self.task = self.progress.add_task(
            "voxels", total=total, completed=done, stage="", rate="", start=False
        )
        self.begun, self.counted = 0.0, 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.progress.update(self.task, stage="")
        super().__exit__(kind, error, trace)

    def stage(self, stage: str) -> None:
        """Say what is being done; the clock starts with the first voxels."""
        self.progress.update(self.task, stage=stage)
        if stage.startswith("mapping"):
            self.begun = time.monotonic()
            self.progress.start_task(self.task)

    def advance(self, voxels: int) -> None:
        """Count voxels that are done."""
        self.counted += voxels
        rate = self.counted / max(time.monotonic() - self.begun, 1e-9)
        self.progress.update(self.task, advance=voxels, rate=f"{rate:,.0f}/s")


class StepProgress(_Bars):
    """A bar that counts steps of one piece of work."""

    def __init__(self, total: int, what: str, show: bool, done: int = 0):
        super().__init__(TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), show=show)
        self.task = self.progress.add_task(what, total=total, completed=done, stage="")

    def advance(self, stage: str = "") -> None:
        """Count a step that is done, and say what is being done."""
        self.progress.update(self.task, advance=1, stage=stage)

    def finish(self) -> None:
        """Fill the bar."""
        self.progress.update(self.task, completed=self.progress.tasks[self.task].total, stage="done")

"""The command that trains a recipe over a grid. cli.py gives it its name."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options
from .errors import InputError

if TYPE_CHECKING:
    from .records import Sweep

SWEEP_EXAMPLES = (
    "Examples:  [bold]rankfold train-sweep glyphs-dec3-compact --grid low_rank=1e-3,1e-2 group=0,0.3 --workers 2[/]   "
    "[bold]rankfold train-sweep my.toml --data chars.npz --grid low_rank=0,3e-3 seed=0,1,2 --energy 0.9,0.95,1[/]   "
    "[bold]rankfold train-sweep my.toml --grid optimizer.lr=0.1,0.05 --storage postgresql://host/studies --no-bench[/]"
)


def train_sweep(
    recipe: Annotated[str, typer.Argument(help="A recipe: a .toml file, or the name of one that comes along.")],
    more: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUES]...", help="More keys for --grid.")] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE,VALUE: of \\[regularizer], seed, or a path such as optimizer.lr."),
    ] = None,
    energy: Annotated[
        str | None, typer.Option(help="Export each training at these shares of the singular values, e.g. 0.9,0.95,1")
    ] = None,
    data: options.DataOption = None,
    model: options.ModelOption = None,
    weights: options.WeightsOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="Sweep folder.  [default: runs/sweep-RECIPE]")] = None,
    change: options.SetOption = None,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes that train side by side here.")] = 1,
    threads: options.ThreadsOption = 1,
    tile: options.TileOption = "auto",
    storage: Annotated[
        str | None, typer.Option(help="Optuna storage for many hosts: a database URL.  [default: study.db in --out]")
    ] = None,
    heartbeat_s: Annotated[
        int, typer.Option(min=1, help="A worker that is silent for twice as long is made up for.")
    ] = 30,
    device: options.DeviceOption = "host",
    pairs: Annotated[int | None, typer.Option(min=2, help="Launch pairs a network.  [default: 8]")] = None,
    bench: Annotated[bool, typer.Option("--bench/--no-bench", help="Measure latency when all are trained.")] = True,
) -> None:
    """Train a recipe at every point of a grid, measure all networks side by side, report.

    The same command goes on where it was killed, and may be given several times at once: processes on any hosts that
    share --out, and --storage, share the points.
    """
    if find_spec("optuna") is None:
        raise InputError("train-sweep needs Optuna; install it with: pip install 'rankfold[train]'")
    from .runtime.report import write_report
    from .stages import probe_device
    from .sweep.conclude import concluded, headline_of
    from .sweep.grid import Task, grid_of, points_of
    from .sweep.workers import run
    from .tables import print_train_sweep
    from .train.recipe import load_recipe

    changes = options.recipe_changes(model, weights, change)
    keys = grid_of([*(grid or []), *(more or [])])
    if not keys and energy is None:
        raise InputError("expected --grid key=value,value or --energy with several values, found neither")
    wanted_tile = options.tile(tile)
    task = Task(
        recipe=recipe,
        base=load_recipe(recipe, changes),
        grid=keys,
        energies=_energies(energy),
        points=points_of(recipe, changes, keys),
        out=out or Path("runs") / f"sweep-{Path(recipe).stem}",
        data=data,
        storage=storage,
        threads=threads,
        tile=wanted_tile if wanted_tile is not None else probe_device(device)[0].tile,
        heartbeat_s=heartbeat_s,
    )
    run(task, workers)
    sweep: Sweep = concluded(task, device=device if bench else None, pairs=pairs)
    print_train_sweep(sweep)
    print(task.out / "sweep.json")
    if bench:
        chosen = headline_of(sweep)
        print(f"fastest within a point of the most accurate: {chosen}")
        print(write_report(task.out, headline=chosen))


def _energies(text: str | None) -> list[float]:
    if text is None:
        return []
    try:
        found = list(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        found = []
    if not found or not all(0 < energy <= 1 for energy in found):
        raise InputError(f"--energy {text[:40]!r}: expected numbers above 0 and up to 1, such as 0.9,0.95,1")
    return found

"""The command line: each command reads its arguments, calls one stage, and prints where the result lies.

Heavy packages are imported inside the commands, so that `rankfold --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from . import bench_commands, compress_commands, cost_commands, explain_commands, onnx_commands, options, sweep_commands
from .device_commands import devices_app
from .errors import InputError, RankfoldError, complaint, system_complaint
from .options import ThreadsOption

if TYPE_CHECKING:
    from .records import Measure, Recipe

# numpy's own threads gain nothing on matrices of a kernel's size, and on busy cores they wait for each other
# (a 768×256 SVD: 4.9 s with two, 0.06 s with one). Read when numpy is first imported, below this line.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

app = typer.Typer(
    name="rankfold",
    help="Train networks small, fold them exactly, and prove on the board that they got faster.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example:  [bold]rankfold train glyphs-dec3-compact[/], then export, evaluate, bench and report the run",
)
app.add_typer(devices_app, name="devices")

Form = Literal["channel", "input-channel", "spatial", "linear"]
_STOPPED = (
    "interrupted; nothing half-written is left, and a training run or a bench goes on with --resume, "
    "a sweep with the same command"
)
_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def main() -> NoReturn:
    """Run one command. Errors that a user can mend are one line on stderr and an exit code, never a traceback."""
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
        if code == _INTERRUPTED:  # typer makes a silent exit of Ctrl-C
            raise KeyboardInterrupt
    except RankfoldError as error:
        _complain(str(error))
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        _complain(_STOPPED)
        code = _INTERRUPTED
    except BrokenPipeError:
        _drop_output()  # whoever read it has gone
        code = 0
    except typer.TyperException as error:
        if message := error.format_message():  # empty where the help was printed instead
            _complain(f"{message.rstrip('.')}; see --help")
        code = 2
    except OSError as error:  # a full disk under what we print, a file that vanished while it was read
        _drop_output()
        print(system_complaint(error), file=sys.stderr)
        code = 2
    sys.exit(code or 0)


def _target_option(what: str) -> Any:
    return typer.Option(min=0.001, max=1, help=f"Steer to this share of the dense {what}.", show_default=False)


# --- train --------------------------------------------------------------------------------------------------


@app.command(
    epilog="Examples:  [bold]rankfold train glyphs-dec3[/]   "
    "[bold]rankfold train my.toml --data chars.npz --set optimizer.lr=0.05 --resume[/]   "
    "[bold]rankfold train my.toml --target-macs 0.4[/]   "
    "[bold]rankfold train my.toml --plan small.plan.json --from runs/my-0 --out runs/small --set optimizer.lr=0.01[/] "
    "  [bold]torchrun --nproc-per-node 2 -m rankfold train my.toml --threads 1[/]"
)
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe: a .toml file, or the name of one that comes along.")],
    data: options.DataOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder.  [default: runs/RECIPE-SEED]")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides weights and the order of images.")] = 0,
    change: options.SetOption = None,
    model: options.ModelOption = None,
    weights: options.WeightsOption = None,
    plan: Annotated[
        Path | None, typer.Option(help="Train the small network of this .plan.json on; its .onnx lies beside it.")
    ] = None,
    dense: Annotated[
        Path | None, typer.Option("--from", help="With --plan: the run it came from, unless the recipe loads weights.")
    ] = None,
    target_macs: Annotated[float | None, _target_option("MACs")] = None,
    target_params: Annotated[float | None, _target_option("weights")] = None,
    target_latency: Annotated[float | None, _target_option("layers' time, by the recipe's regularizer.table")] = None,
    threads: ThreadsOption = 2,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run folder's checkpoint.")] = False,
) -> None:
    """Train a network as a recipe says: checkpoint.safetensors, metrics.jsonl and train.json in a run folder.

    With a target the strengths of the penalties are sought so that no more is left at regularizer.hold_from (60 %) of
    the steps; where that is not reached at the end, the run is there and the exit code is 1.
    """
    from .train.recipe import aimed, load_recipe

    loaded = load_recipe(recipe, options.recipe_changes(model, weights, change))
    asked: dict[Measure, float | None] = {"macs": target_macs, "params": target_params, "latency": target_latency}
    targets: dict[Measure, float] = {of: share for of, share in asked.items() if share is not None}
    if len(targets) > 1 or (targets and plan is not None):
        raise InputError("give one of --target-macs, --target-params and --target-latency, and no --plan with it")
    for of, share in targets.items():
        loaded = aimed(loaded, of, share)
    name = Path(recipe).stem + (f"-{plan.name.split('.')[0]}" if plan is not None else "")
    folder = out or Path("runs") / f"{name}-{seed}"
    if dense is not None and (plan is None or folder.resolve() == dense.resolve()):
        raise InputError(f"--from {dense}: goes with --plan, and another --out than itself")

    from .tables import epoch_line  # torch comes with these: seconds, in which nobody waits for a misspelt key
    from .terminal import bars
    from .train import data as datasets
    from .train import processes
    from .train.trainer import RECORD, Progress
    from .train.trainer import train as run

    dataset, start = datasets.load(loaded.data, data), None
    if plan is not None:
        from .train.planned import planned, start_of

        loaded, start = planned(loaded), start_of(loaded, dataset, plan, dense)
    with processes.joined(), bars() as new_bar:
        shown = [new_bar(name)] if processes.own() == 0 else []

        def show(progress: Progress) -> None:
            if progress.row is not None:
                print(epoch_line(progress.row), flush=True)
            for bar in shown:
                bar.show(progress.step, progress.steps, progress.left_s, f"loss {progress.loss:.3f}")

        record = run(loaded, dataset, folder, seed=seed, start=start, threads=threads, resume=resume, on_progress=show)
    if not shown:  # another process speaks
        return
    print(
        f"{folder / RECORD}: {record.validation_accuracy:.2%} of {dataset.name}'s validation split, "
        f"{record.parameters:,} parameters, {record.train_s:.0f} s ({record.proximal_s / record.train_s:.1%} proximal)"
    )
    if record.start is None:
        print(_promise(loaded, record.validation_accuracy))
    else:
        print(f"{record.start.small_accuracy:.2%} before, the dense network has {record.start.dense_accuracy:.2%}")
    if record.target is not None:
        print(
            f"of the dense {record.target.of} {record.target.reached:.1%} are left, {record.target.wanted:.1%} wanted"
        )
    if targets and record.target is not None and record.target.held_from is None:
        raise typer.Exit(1)  # why, and what to change, has been said


def _promise(recipe: Recipe, validation_accuracy: float) -> str:
    promise = recipe.promise
    text = f"the recipe promises {promise.metric} of at least {promise.at_least:.1%} on {promise.measured_on}"
    if promise.metric != "validation_accuracy":
        return text
    return f"{text}: {'kept' if validation_accuracy >= promise.at_least else 'NOT kept here'}"


app.command(name="train-sweep", epilog=sweep_commands.SWEEP_EXAMPLES)(sweep_commands.train_sweep)

# --- export -------------------------------------------------------------------------------------------------


@app.command(epilog="Example:  [bold]rankfold export runs/glyphs-dec3-0 --form spatial --tile 16[/]")
def export(
    run_dir: Annotated[Path, typer.Argument(help="A run folder that `rankfold train` finished.")],
    form: Annotated[Form | None, typer.Option(help="How kernels are factored.  [default: the recipe's]")] = None,
    energy: Annotated[float | None, typer.Option(min=0, max=1, help="Share of the sum of singular values.")] = None,
    tile: Annotated[str, typer.Option(help="Round ranks and widths up to this; auto: this machine's.")] = "auto",
    parameters: Annotated[int | None, typer.Option(help="Instead of --energy: the most that fits.")] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Write both in int8 too, by the run's training images.")] = False,
    data: options.DataOption = None,
) -> None:
    """Write dense.onnx and compact.onnx, with the plan and its reasons, and the parity checks."""
    from .stages import COMPACT, DENSE, INT8, export_run
    from .tables import print_int8, print_plan

    tiles = options.tile(tile)
    plan = export_run(run_dir, form=form, energy=energy, tile=tiles, parameters=parameters, int8=int8, data=data)
    print_plan(plan)
    for source, name in zip((DENSE, COMPACT), INT8 if int8 else (), strict=False):
        print_int8(run_dir / source, run_dir / name)
    print(run_dir / "compact.onnx")


# --- any ONNX file ------------------------------------------------------------------------------------------

app.command(epilog=onnx_commands.FOLD_EXAMPLES)(onnx_commands.fold)
app.command(epilog=compress_commands.COMPRESS_EXAMPLES)(compress_commands.compress)
app.command(epilog=onnx_commands.TUNE_EXAMPLES)(onnx_commands.tune)
app.command(epilog=onnx_commands.QUANTIZE_EXAMPLES)(onnx_commands.quantize)
app.command(epilog=onnx_commands.PACKAGE_EXAMPLES)(onnx_commands.package)
app.command(epilog=onnx_commands.MODEL_EXAMPLES)(onnx_commands.model)
app.command(epilog=onnx_commands.EVALUATE_EXAMPLES)(onnx_commands.evaluate)
app.command(epilog=compress_commands.TABLE_EXAMPLE, no_args_is_help=True)(compress_commands.latency_table)
app.command(epilog=explain_commands.EXPLAIN_EXAMPLES)(explain_commands.explain)

# --- bench, compare, report ----------------------------------------------------------------------------------


app.command(epilog=bench_commands.BENCH_EXAMPLES)(bench_commands.bench)
app.command(epilog=bench_commands.COMPARE_EXAMPLES)(bench_commands.compare)
app.command(epilog=cost_commands.COST_EXAMPLES)(cost_commands.cost)


@app.command(
    epilog="Examples:  [bold]rankfold report runs/glyphs-dec3-0 -o report.html[/]   "
    "[bold]rankfold report bench.pi4.json bench.pi5.json[/]"
)
def report(
    sources: Annotated[
        list[Path], typer.Argument(help="A run folder, a comparison folder, or a bench.json; or one for each device.")
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The page.")] = None,
    headline: Annotated[str | None, typer.Option(help="The variant the answer is about.")] = None,
) -> None:
    """Write the latency report: report.html, and report.md, report.csv and dashboard.json beside it.

    Of several devices' records, one page of who gains where: report.html, and report.md beside it.
    """
    from .runtime.report import write_across, write_report

    if len(sources) == 1:
        print(write_report(sources[0], output, headline))
    elif headline is not None:
        raise InputError("--headline is for the report of one device; leave it out")
    else:
        print(write_across(sources, output))


# --- arguments and errors -----------------------------------------------------------------------------------


def _drop_output() -> None:
    """What is still buffered for stdout goes nowhere, so that the interpreter's own flush at exit succeeds."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(message: str) -> None:
    print(complaint(message), file=sys.stderr)

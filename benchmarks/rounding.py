"""What do widths off the tile cost? MobileNetV2 in CIFAR's shape, pruned without alignment and with it, at equal MACs.

python -m rankfold.benchmarks.rounding run [--work FOLDER] [--results FILE] [--time S]
python -m rankfold.benchmarks.rounding show [--results FILE]

unaligned   by Torch-Pruning (make peers installs it), magnitudes, a share of every layer's channels
rounded     by the same with `round_to` the tile, at the share whose MACs come nearest
aligned     by `rankfold compress --prune`, which takes whole tiles of channels, until no more MACs are left
cured       the unaligned one with channels of zeros: `rankfold explain dense.onnx unaligned.onnx --make "all widths
            padded"`, which computes the same

All are timed in launch pairs beside the unaligned one; how many convolutions of each the runtime puts into its blocked
layout, and what `explain` says of the unaligned one beside the dense one, stands in the same row. Nothing is learned:
weights are drawn (`benchmarks/peers/mobilenet.py`), and say nothing of accuracy. Files are kept in the work folder, so
that a second run only measures; nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import copy
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import onnxruntime as ort
import torch
from torch import nn

from ..errors import InputError
from ..export.compress import Job
from ..export.explain import explain, make_into
from ..export.wish import Wish
from ..files import sha256_of, write_bytes
from ..records import ChoosingRow
from ..runtime.costs import count
from ..runtime.latency import Stopwatch
from ..terminal import bars, progress
from .answers import Answers, Found, markdown
from .command import in_one_line, machine_of, stopwatch_here
from .peers.installed import library, missing
from .peers.making import exported
from .peers.mobilenet import mobilenetv2
from .peers.torch_pruning import by_magnitude
from .planted import ledger_in_words
from .promised import kept
from .questions import launched
from .rows import read
from .subject import Subject

RESULTS, WORK = Path("docs/results/rounding.jsonl"), Path("runs/rounding")
RATIOS = (0.15, 0.3, 0.45)  # of every layer's channels
TRIED = tuple(share / 20 for share in range(1, 14))  # for the rounded one
TIME_S, PAIRS = 30.0, 8
IMAGES = torch.zeros(2, 3, 32, 32)
CURE = "all widths padded"
BLOCKED = "com.microsoft.nchwc"
Report = Callable[[str, int, int], None]


# --- files --------------------------------------------------------------------------------------------------


def files_of(ratio: float, tile: int, work: Path, report: Report) -> dict[str, Path]:
    """The network, and what each way made of it; those that are there are not made again."""
    paths = {"dense": work / "dense.onnx"} | {
        way: work / f"{way}-{ratio:g}-{tile}.onnx" for way in ("unaligned", "rounded", "aligned", "cured")
    }
    ways: Mapping[str, Callable[[Path], None]] = {
        "dense": lambda path: exported(_network(), IMAGES, path),
        "unaligned": lambda path: exported(_pruned(ratio, None), IMAGES, path),
        "rounded": lambda path: exported(_pruned(_nearest(paths["unaligned"], tile), tile), IMAGES, path),
        "aligned": lambda path: _aligned(paths["dense"], _macs(paths["unaligned"]), tile, path),
        "cured": lambda path: _cured(paths["dense"], paths["unaligned"], tile, path),
    }
    work.mkdir(parents=True, exist_ok=True)
    for number, (way, made) in enumerate(ways.items()):
        report(f"ratio {ratio:g}, {way}", number, len(ways))
        if not paths[way].exists():
            made(paths[way])
    report(f"ratio {ratio:g}", len(ways), len(ways))
    return paths


def _pruned(ratio: float, round_to: int | None) -> nn.Module:
    return by_magnitude(copy.deepcopy(_network()), IMAGES, pruning_ratio=ratio, round_to=round_to)


@cache
def _network() -> nn.Module:
    return mobilenetv2()


def _nearest(unaligned: Path, tile: int) -> float:
    """The share at which Torch-Pruning's own rounding leaves the MACs nearest to these."""
    wanted = _macs(unaligned)
    return min(TRIED, key=lambda share: abs(_rounded_macs(share, tile) - wanted))


@cache
def _rounded_macs(share: float, tile: int) -> float:
    return library("torch_pruning").utils.count_ops_and_params(_pruned(share, tile), IMAGES[:1])[0]


def _aligned(dense: Path, most: int, tile: int, path: Path) -> None:
    """No more MACs than `most`."""
    with TemporaryDirectory(prefix="rankfold-") as folder:
        names = Job(Wish(prune=1 - most / _macs(dense), tile=tile)).into(Path(folder), dense, path.name)
        write_bytes(path, (Path(folder) / names[-1]).read_bytes())


def _cured(dense: Path, unaligned: Path, tile: int, path: Path) -> None:
    with TemporaryDirectory(prefix="rankfold-") as folder:
        names, _ = make_into(Path(folder), dense, unaligned, path.name, [CURE], tile)
        write_bytes(path, (Path(folder) / names[-1]).read_bytes())


def _macs(path: Path) -> int:
    found = count(onnx.load(path)).macs
    assert found is not None, "the network has fixed sizes"
    return found


# --- what is measured ---------------------------------------------------------------------------------------


def convolutions(path: Path) -> dict[str, int]:
    """Of the graph as the runtime optimises it here: convolutions in its blocked layout, others, and reorders."""
    with TemporaryDirectory(prefix="rankfold-") as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 3  # that the file is for this machine alone
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        nodes = onnx.load(options.optimized_model_filepath).graph.node
    kinds = Counter((node.domain == BLOCKED, node.op_type) for node in nodes)
    return {
        "blocked": kinds[True, "Conv"],
        "plain": kinds[False, "Conv"] + sum(number for (_, kind), number in kinds.items() if kind == "FusedConv"),
        "reorders": sum(number for (_, kind), number in kinds.items() if kind.startswith("Reorder")),
    }


def compared(paths: Mapping[str, Path], watch: Stopwatch, folder: Path, time_s: float, report: Report) -> Found:
    """All ways beside the unaligned one; how many times as fast each is, its MACs, its layout; what `explain` says."""
    found = explain(paths["dense"], paths["unaligned"], watch, time_s=time_s, report=report)
    assert found.second.run_s is not None, "two files"
    first = {"unaligned": paths["unaligned"].read_bytes()}
    contents = first | {way: path.read_bytes() for way, path in paths.items()}
    faster = launched(Subject("mobilenetv2", folder, paths["dense"], watch, report=report), folder, contents, PAIRS)
    figures, dense, now_ms = dict[str, float](), _macs(paths["dense"]), 1e3 * found.second.run_s
    for way, path in paths.items():
        figures[f"{way} MACs"] = _macs(path) / dense
        figures |= {f"{way} {kind}": float(number) for kind, number in convolutions(path).items()}
        if way in faster:
            figures |= {f"{way} {end}": one for end, one in zip(("faster", "low", "high"), faster[way], strict=True)}
    figures["unaligned ms"] = now_ms
    cure = next((one for one in found.improvements if one.name == CURE), None)
    if cure is not None:
        folds = [one.worth for one in found.improvements if one.name == "folded"]
        figures |= {f"cure {name}": one for name, one in kept([*folds, cure.worth], now_ms, faster["cured"])}
    best = found.together or next(iter(found.improvements), None)
    told = "no change was found to gain" if best is None else f"best: {best.name} ({best.about})"
    return Found(figures, f"{told}; {found.verdict}; {ledger_in_words(found)}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    going, showing = commands.add_parser("run", help="measure what is missing"), commands.add_parser("show")
    going.add_argument("--time", type=float, default=TIME_S, help="seconds to explain each")
    going.add_argument("--work", type=Path, default=WORK, help="where the files are kept")
    for one in (going, showing):
        one.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    with in_one_line():
        if given.command == "run":
            why = missing("torch_pruning")
            if why is not None:
                raise InputError(why)
            watch = stopwatch_here()
            answers = Answers(given.results, machine_of(watch.facts), 1, 0)
            with bars() as new_bar, TemporaryDirectory(prefix="rankfold-") as folder:
                report = progress(new_bar)
                for ratio in RATIOS:
                    paths = files_of(ratio, watch.facts.tile, given.work, report)
                    identity = [*map(sha256_of, paths.values()), version("torch-pruning"), given.time, PAIRS]
                    ask = partial(compared, paths, watch, Path(folder), given.time, report)
                    answers.once("rounding", f"mobilenetv2, ratio {ratio:g}", identity, ask)
        print(markdown(read(given.results, ChoosingRow)))


if __name__ == "__main__":
    main()

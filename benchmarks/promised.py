"""Does the gain arrive that `rankfold explain` promises? ResNet-20 made smaller in ways that the device does not like.

python -m rankfold.benchmarks.promised run --weights resnet20.th [--results FILE] [--time S]
python -m rankfold.benchmarks.promised show [--results FILE]

pruned      by Torch-Pruning (make peers installs it), magnitudes, 30 % of the channels: widths off the tile
decomposed  spatial factors with 80 % of each layer's energy: ranks off the tile

Each is explained beside the dense network; the change worth most, and the best of each place together, are made with
`--make`, and the file is timed in launch pairs beside the one that was explained. A row a network; nothing else should
run meanwhile.
"""

from __future__ import annotations

import argparse
import shlex
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch

from ..errors import CheckFailed
from ..export.choose import plan_by_energy
from ..export.explain import explain, make_into
from ..export.fold import finished, opened
from ..export.from_torch import to_onnx
from ..export.graphs import save
from ..export.passes.factorize import factorize
from ..files import sha256_of
from ..records import ChoosingRow, Seconds
from ..runtime.inputs import Given
from ..runtime.latency import Stopwatch
from ..terminal import bars, progress
from .answers import Answers, Found, markdown
from .command import in_one_line, machine_of, stopwatch_here
from .oneshot import published
from .peers.torch_pruning import by_magnitude
from .planted import ledger_in_words
from .questions import launched
from .rows import read
from .subject import Subject

RESULTS = Path("docs/results/promised.jsonl")
TIME_S = 120.0
PAIRS = 16
PRUNED, ENERGY = 0.3, 0.8
IMAGES, CLASSES = torch.zeros(2, 3, 32, 32), 10


def pruned(network: torch.nn.Module, dense: Path, path: Path) -> None:
    """The network as Torch-Pruning leaves it at its own settings."""
    to_onnx(by_magnitude(network, IMAGES, pruning_ratio=PRUNED), IMAGES, path)


def decomposed(network: torch.nn.Module, dense: Path, path: Path) -> None:
    """The network by the energy rule, as it is published: no tile, one energy for all layers."""
    model, _ = opened(dense, Given(), path.parent)
    plan = plan_by_energy(model, form="spatial", energy=ENERGY, tile=1)
    factorize(model, {name: layer for name, layer in plan.layers.items() if layer.form != "dense"})
    save(finished(model, None), path)


MADE: dict[str, Callable[[torch.nn.Module, Path, Path], None]] = {"pruned": pruned, "decomposed": decomposed}


def promises(
    how: str, weights: Path, watch: Stopwatch, folder: Path, time_s: float, report: Callable[[str, int, int], None]
) -> Found:
    """What became of the change worth most, and of all together."""
    first, second = folder / "dense.onnx", folder / f"{how}.onnx"
    network = published("resnet20", weights, CLASSES)
    to_onnx(network, IMAGES, first)
    MADE[how](network, first, second)
    found = explain(first, second, watch, time_s=time_s, report=report)
    gains = [one for one in found.improvements if one.name != "folded"]
    if not gains:
        raise CheckFailed(f"{how}: no change was found to gain; {found.verdict}; {ledger_in_words(found)}")
    wanted = {"first": gains[0]} | ({"together": found.together} if found.together else {})
    contents = {"now": second.read_bytes()}
    for kind, promise in wanted.items():
        words = shlex.split(promise.command)
        names = [name for option, name in pairwise(words) if option == "--make"]
        made, _ = make_into(folder, first, second, f"{kind}.onnx", names, watch.facts.tile)
        contents[kind] = (folder / made[-1]).read_bytes()
    compared = launched(Subject("resnet20", folder, first, watch, report=report), folder, contents, PAIRS)
    assert found.second.run_s is not None, "two files"
    figures = {"now_ms": 1e3 * found.second.run_s}
    folds = [one.worth for one in found.improvements if one.name == "folded"]
    for kind, promise in wanted.items():
        figures |= {
            f"{kind} {name}": figure
            for name, figure in kept([*folds, promise.worth], figures["now_ms"], compared[kind])
        }
        figures[f"{kind} changes"] = promise.error or 0.0
    changes = "; ".join(f"{kind}: {one.name} ({one.about})" for kind, one in wanted.items())
    return Found(figures, f"{changes}; {found.verdict}; {ledger_in_words(found)}")


def kept(worth: Sequence[Seconds], now_ms: float, faster: tuple[float, float, float]) -> Iterator[tuple[str, float]]:
    """A promise beside what launch pairs say; it is kept where their intervals meet."""
    promised = [1e3 * sum(getattr(one, end) for one in worth) for end in ("value", "low", "high")]
    arrived = [now_ms * (1 - 1 / one) for one in faster]
    for what, (value, low, high) in (("promised", promised), ("arrived", arrived), ("times as fast", faster)):
        yield from ((what, value), (f"{what} low", low), (f"{what} high", high))
    yield "kept", float(arrived[1] <= promised[2] and promised[1] <= arrived[2])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    going, showing = commands.add_parser("run", help="measure what is missing"), commands.add_parser("show")
    going.add_argument("--weights", type=Path, required=True, help="the published ResNet-20")
    going.add_argument("--time", type=float, default=TIME_S, help="seconds to explain")
    for one in (going, showing):
        one.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    with in_one_line():
        if given.command == "run":
            watch = stopwatch_here()
            answers = Answers(given.results, machine_of(watch.facts), 1, 0)
            identity = [sha256_of(given.weights), given.time, PRUNED, ENERGY, PAIRS]
            with bars() as new_bar:
                for how in MADE:
                    with tempfile.TemporaryDirectory(prefix="rankfold-") as folder:
                        ask = partial(promises, how, given.weights, watch, Path(folder), given.time, progress(new_bar))
                        answers.once("promised", how, identity, ask)
        print(markdown(read(given.results, ChoosingRow)))


if __name__ == "__main__":
    main()

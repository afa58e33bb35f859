"""rankfold side by side with what its users would pick instead, int8 included.

python -m rankfold.benchmarks.peers plan --weights FOLDER --data cifar10.npz --chars chars74k36.npz --work DIR
python -m rankfold.benchmarks.peers run  --weights FOLDER --data cifar10.npz --chars chars74k36.npz --work DIR
python -m rankfold.benchmarks.peers time --weights FOLDER --data cifar10.npz --chars chars74k36.npz --work DIR
python -m rankfold.benchmarks.peers show

`plan` says what there is to do and how long it takes; `run` makes every tool's grid, trains the finalists and scores
all on validation images; `time` measures side by side, confirms by a bare loop, tests what was chosen; `show` prints
tables and draws the picture. Rules: finalists.py. With `--quick` a few settings, a part of the data, a fraction of an
epoch: it shows that all of it works, and nothing of the tools. Third parties' tools: requirements.txt.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from ...errors import InputError
from ...runtime.turns import Options
from ...terminal import duration
from ..command import in_one_line
from .campaign import Campaign
from .shown import draw, markdown
from .subjects import SUBJECTS, Places
from .timing import QUICK_PAIRS

RESULTS, QUICK_RESULTS = Path("docs/results/peers.jsonl"), Path("runs/peers/quick.jsonl")

QUICK_NETWORKS = ("resnet20", "dec3")


def main() -> None:
    """Plan, run, time or show."""
    given = _parser().parse_args()
    with in_one_line():
        _do(given)


def _do(given: argparse.Namespace) -> None:
    results = given.results or (QUICK_RESULTS if given.quick else RESULTS)
    if given.command == "show":
        print(markdown(results))
        draw(results)
        return
    for name, path in (("--data", given.data), ("--chars", given.chars), ("--weights", given.weights)):
        if not path.exists():
            raise InputError(f"{name} {path}: expected it to be there; see --help")
    places = Places(given.weights, given.data, given.chars, given.work, given.quick)
    whole_s = 0.0
    for name in given.networks or (QUICK_NETWORKS if given.quick else SUBJECTS):
        campaign = Campaign(SUBJECTS[name](places), results)
        if given.command == "run":
            campaign.workers, campaign.until = given.workers, time.monotonic() + 60 * given.minutes
            campaign.retry = given.retry
            campaign.run()
        elif given.command == "time":
            pairs = given.pairs or (QUICK_PAIRS if given.quick else None)
            campaign.measure(Options(pairs=pairs))
        else:
            for stage in campaign.estimate():
                print(f"{name}: {stage.count} {stage.what}: {duration(stage.seconds)}", flush=True)
                whole_s += stage.seconds / (1 if stage.is_alone else given.workers)
    if given.command == "plan":
        print(f"{given.workers} at a time where that disturbs nothing: some {whole_s / 3600:.1f} hours")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rankfold.benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    planning = commands.add_parser("plan", help="what there is to do, and how long it takes")
    going = commands.add_parser("run", help="make, train and score what is missing")
    timing = commands.add_parser("time", help="measure and test what was made")
    showing = commands.add_parser("show", help="tables, and the picture beside the rows")
    for one in (planning, going, timing):
        one.add_argument("--weights", type=Path, required=True, help="folder of the published resnet20*.th")
        one.add_argument("--data", type=Path, required=True, help="CIFAR-10 as an npz file")
        one.add_argument("--chars", type=Path, required=True, help="Chars74K as an npz file")
        one.add_argument("--work", type=Path, required=True, help="folder for networks, trainings and benches")
        one.add_argument("--networks", nargs="+", choices=SUBJECTS, help=f"of a quick run {', '.join(QUICK_NETWORKS)}")
    for one in (planning, going):
        one.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="at a time, a thread each")
    going.add_argument("--minutes", type=float, default=1e6, help="stop then; the same command goes on")
    going.add_argument("--retry", action="store_true", help="settings that gave no network, too")
    timing.add_argument("--pairs", type=int, help="launch pairs; 8 as a rule, 2 of a quick run")
    for one in (planning, going, timing, showing):
        one.add_argument("--results", type=Path, help=f"{RESULTS}, or {QUICK_RESULTS} of a quick run")
        one.add_argument("--quick", action="store_true", help="does all of it work: under 15 minutes")
    return parser


if __name__ == "__main__":
    main()

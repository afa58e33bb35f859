"""Forms, ranks and widths by measured latency: is it true what is promised of them?

python -m rankfold.benchmarks.choosing run WHAT [NETWORK …] [--threads N] [--weights PATH …] [--data cifar10.npz]
python -m rankfold.benchmarks.choosing show [--results FILE]     tables of what the rows say

budget      what compress --budget 0.5 comes to, in launch pairs and foretold; or that it cannot be had
fill        how long an empty latency table takes to fill
neighbours  whether a plan that differs in one layer, or two, and damages no more, is faster
in-place    whether a factorised layer is slower in place than dense
predicted   how far foretold times of whole networks are from timed ones
rivals      against the same solver with MACs, and one energy for all layers, where all lose as much top-1

One row an answer, written as soon as it is known; a row that is there is not measured again. Nothing else should run
meanwhile.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from ..errors import CheckFailed, InputError
from ..records import ChoosingRow
from ..runtime.latency import WHOLE_ROUNDS, Stopwatch
from ..terminal import bars, duration, progress
from . import questions
from .answers import Answers, Found, markdown
from .command import in_one_line, machine_of, stopwatch_here
from .rivals import DROPS, rivals
from .rows import read
from .subject import NETWORKS, PUBLISHED, Catalogue, Subject, weights_by_name

RESULTS = Path("docs/results/choosing.jsonl")
Asked = Callable[[Subject, Answers, list[object]], Found]


@dataclass(frozen=True)
class Question:
    """What is asked, and in which of its variants; `ask` gets all that identifies the row as well."""

    what: str
    ask: Asked
    variant: str = ""
    networks: Sequence[str] = NETWORKS


def _plain(function: Callable[[Subject], Found]) -> Asked:
    """A question to the subject alone; that its network cannot be made fast enough is an answer."""

    def ask(subject: Subject, answers: Answers, identity: list[object]) -> Found:
        try:
            return function(subject)
        except CheckFailed as error:
            return Found({"fastest": subject.search.fastest.ratio}, subject.anonymous(str(error)))

    return ask


LONG = ("resnet50",)  # runs so long that seconds alone left too few rounds
NARROWED = ("resnet20", "mobilenetv2")  # those that ranks alone do not make twice as fast
SERVED = "served"  # whole networks are timed after runs of their own since then: older rows no longer count
QUESTIONS = (
    Question("budget", _plain(questions.budget), SERVED),
    Question("budget", _plain(partial(questions.budget, widths=True)), f"{SERVED}, with widths", NARROWED),
    Question("fill", _plain(questions.fill)),
    Question("neighbours", _plain(questions.beside), f"{SERVED}, and exchanges of any step"),
    Question("in-place", _plain(questions.in_place), SERVED, [name for name in NETWORKS if name not in LONG]),
    Question("in-place", _plain(questions.in_place), f"{SERVED}, {WHOLE_ROUNDS} rounds", LONG),
    Question("predicted", _plain(questions.predicted), SERVED),
    *(Question("rivals", partial(rivals, wanted=drop), f"{100 * drop:g} points", PUBLISHED) for drop in DROPS),
)
WHAT = tuple(dict.fromkeys(question.what for question in QUESTIONS))


def run(
    what: str, networks: Sequence[str], catalogue: Catalogue, answers: Answers, watch: Stopwatch
) -> Iterator[ChoosingRow]:
    """Every row of a question that is not there yet."""
    missing = {name: _missing(what, name, catalogue, answers) for name in networks}
    left = sum(map(len, missing.values()))
    took = [row.took_s for row in answers.rows if row.what == what]
    with bars() as new_bar:
        whole, report = new_bar(what), progress(new_bar)
        for name in (name for name in networks if missing[name]):
            with tempfile.TemporaryDirectory(prefix="rankfold-") as folder:
                subject = catalogue.subject(name, Path(folder), watch, report)
                identity = catalogue.identity(name)
                for question in missing[name]:
                    total = sum(map(len, missing.values()))
                    whole.show(total - left, total, median(took) * left if took else None, name)
                    row = answers.once(
                        what,
                        name,
                        [question.variant, *identity],
                        partial(question.ask, subject, answers, identity),
                    )
                    left -= 1
                    took.append(row.took_s)
                    yield row


def _missing(what: str, name: str, catalogue: Catalogue, answers: Answers) -> list[Question]:
    """A question's variants that have no row for this network."""
    asked = [one for one in QUESTIONS if one.what == what and name in one.networks]
    return [one for one in asked if answers.known(what, name, [one.variant, *catalogue.identity(name)]) is None]


def said(row: ChoosingRow) -> str:
    """A row in a line."""
    figures = ", ".join(f"{name} {figure:.4g}" for name, figure in row.figures.items())
    return f"{row.what} {row.network}: {figures} ({duration(row.took_s)}){'; ' if row.note else ''}{row.note}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    going = commands.add_parser("run", help="measure what is missing")
    going.add_argument("what", choices=WHAT)
    going.add_argument("networks", nargs="*", metavar="NETWORK", help=f"of {', '.join(NETWORKS)}; all without")
    going.add_argument("--threads", type=int, default=1)
    going.add_argument("--weights", nargs="+", type=Path, default=[], help="of published networks, or their folder")
    going.add_argument("--data", type=Path, help="CIFAR-10 as an npz file")
    going.add_argument("--seed", type=int, default=0)
    going.add_argument("--table", type=Path, help="the latency table; by default the user's own")
    showing = commands.add_parser("show", help="tables of what the rows say")
    for one in (going, showing):
        one.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    with in_one_line():
        if given.command == "show":
            print(markdown([row for row in read(given.results, ChoosingRow) if row.what in WHAT]))
            return
        began = time.monotonic()
        for row in _run(given):
            print(said(row), flush=True)
        print(f"{given.results}: {duration(time.monotonic() - began)}")


def _run(given: argparse.Namespace) -> Iterator[ChoosingRow]:
    able = [name for name in NETWORKS if any(one.what == given.what and name in one.networks for one in QUESTIONS)]
    networks = given.networks or able
    if unknown := [name for name in networks if name not in able]:
        raise InputError(f"unknown network '{unknown[0]}' for {given.what}; known are {', '.join(able)}")
    watch = stopwatch_here(given.threads, given.table)
    answers = Answers(given.results, machine_of(watch.facts), given.threads, given.seed)
    catalogue = Catalogue(weights_by_name(given.weights), given.data, given.seed)
    yield from run(given.what, networks, catalogue, answers, watch)


if __name__ == "__main__":
    main()

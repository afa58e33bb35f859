"""What the rows say: a table a network, the answer in each class, and accuracy against measured latency."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ...files import replacing
from ...records import ChoosingRow, PeerRow, PeerTime
from ..rows import read
from .finalists import DROP, chosen, fastest, within
from .own import DENSE, INT8, OURS, OWN, RANKFOLD
from .registry import tools
from .words import ANSWERS, TOOLCHAIN, learned, note_of

_HEADS = (
    *("tool", "setting", "learned", "class", "validation", "test (95 %)", "MACs", "parameters", "file", "p50 (95 %)"),
    *("times as fast (95 %)", "by a bare loop", "peak memory", "time to compress", "lines"),
)
_COLOURS = ("k", *(f"C{number}" for number in range(10)), "gold")
_DEPTH = 8  # points of accuracy: what loses more is no candidate


def markdown(results: Path) -> str:
    """All tables, networks in the order of the rows; tools that cannot run here are named with the reason."""
    rows = read(results, PeerRow)
    found = read(results.with_suffix(ANSWERS), ChoosingRow)
    parts = [_network(name, [row for row in rows if row.network == name], found) for name in _networks(rows)]
    missing = [f"- {tool.name}: {tool.missing}" for tool in tools() if tool.missing is not None]
    if any(row.quick for row in rows):
        parts.insert(0, "A quick run, on a part of the data: it shows that all of it works, and nothing of the tools.")
    if missing:
        parts.append("\n".join(["Not compared here:", *missing]))
    used = {row.tool for row in rows}
    uses = [f"- {tool.name}: {tool.example}" for tool in (*OWN, *tools()) if tool.name in used]
    if uses:
        parts.append("\n".join(["How each is used, and where that is documented:", *uses]))
    return "\n\n".join(parts)


def _networks(rows: Sequence[PeerRow]) -> list[str]:
    return list(dict.fromkeys(row.network for row in rows))


def _network(name: str, rows: Sequence[PeerRow], found: Sequence[ChoosingRow]) -> str:
    mine = [row for row in found if row.network == name]
    order = list(dict.fromkeys(row.tool for row in rows))
    timed = [row for row in rows if row.time is not None]
    timed.sort(key=lambda row: (order.index(row.tool), row.setting, row.precision, row.epochs, row.weight or 0.0))
    lines = [f"## {name}", "", *_where(timed), "", f"| {' | '.join(_HEADS)} |"]
    lines += [f"|{' --- |' * 4}{' ---: |' * (len(_HEADS) - 4)}"]
    lines += [f"| {' | '.join(_cells(row))} |" for row in timed]
    failed = [row for row in rows if row.failed]
    lines += ["", f"{len(rows) - len(timed)} more settings were tried at 0 epochs and are not finalists."]
    lines += [f"- no network of {row.tool}, {row.setting}: {row.failed}" for row in failed]
    costs = [row.figures for row in mine if row.what == TOOLCHAIN][-1:]
    lines += [f"The ways to a measured file, seconds: {_costs(one)}." for one in costs]
    return "\n".join([*lines, "", *answers(timed, mine)])


def _where(timed: Sequence[PeerRow]) -> list[str]:
    times = [row.time for row in timed if row.time is not None]
    return list(dict.fromkeys(f"Timed on {one.machine}, threads: {one.threads}." for one in times))


def _costs(figures: Mapping[str, float]) -> str:
    """Ours, and in brackets what one writes without us."""
    told = [f"{name.removesuffix(' s')} {seconds:.1f}" for name, seconds in figures.items()]
    return ", ".join(f"{ours} ({theirs})" for ours, theirs in zip(told[::2], told[1::2], strict=True))


def _cells(row: PeerRow) -> list[str]:
    time = row.time
    assert time is not None, "of those that were timed"
    test = "" if row.test_accuracy is None else f"{_percent(row.test_accuracy)} ({_span(row)})"
    memory = "" if time.peak_rss_bytes is None else f"{time.peak_rss_bytes / 1e6:.0f} MB"
    return [
        row.tool,
        row.setting,
        learned(row),
        row.precision,
        _percent(row.validation_accuracy),
        test,
        f"{(row.macs or 0) / 1e6:.2f} M",
        f"{(row.parameters or 0) / 1e3:.1f} k",
        f"{(row.size_bytes or 0) / 1e3:.0f} kB",
        f"{1e3 * time.p50_s:.3f} ms ({1e3 * time.p50_low_s:.3f} to {1e3 * time.p50_high_s:.3f})",
        _times(time),
        f"{time.bare:.2f}× ({time.bare_low:.2f} to {time.bare_high:.2f})",
        memory,
        f"{row.compress_s or 0:.0f} s",
        str(_lines(row)),
    ]


def _lines(row: PeerRow) -> int:
    known = {tool.name: tool.lines for tool in (*OWN, *tools())}
    is_quantised = row.precision == "int8" and row.tool != INT8
    return known.get(row.tool, 0) + (0 if not is_quantised else 1 if row.tool in OURS else known[INT8])


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f} %"


def _span(row: PeerRow) -> str:
    return f"{100 * (row.test_low or 0):.2f} to {100 * (row.test_high or 0):.2f}, {row.test_n} images"


# --- the answer ---------------------------------------------------------------------------------------------


def answers(rows: Sequence[PeerRow], duels: Sequence[ChoosingRow]) -> Iterator[str]:
    """In each class the fastest of ours against the fastest peer, whatever it is; nothing where nothing is scored."""
    dense = next((row for row in rows if row.tool == DENSE), None)
    if dense is None or dense.validation_accuracy is None:
        return
    whole = _percent(dense.validation_accuracy)
    yield f"At most {100 * DROP:g} points below the dense network, which has {whole} on validation:"
    yield from ["", *_leaders(rows, dense), ""]
    picked = chosen(rows, dense)
    for kind in ("fp32", "int8"):
        ours, peer = picked[RANKFOLD, kind], picked["peer", kind]
        yield f"- {kind}: {_told(RANKFOLD, ours, dense)}; {_told('a peer', peer, dense)}"
        if ours is not None and peer is not None:
            yield f"  {_duel(ours, peer, [row for row in duels if row.what == kind])}"


def _leaders(rows: Sequence[PeerRow], dense: PeerRow) -> Iterator[str]:
    """Of each tool the fastest in each class."""
    near = within(rows, dense)
    yield "| tool | fp32: the fastest | | validation | int8: the fastest | | validation |"
    yield f"|{' --- |' * 2}{' ---: |' * 2} --- |{' ---: |' * 2}"
    for tool in dict.fromkeys(row.tool for row in rows if row.tool != DENSE):
        cells = [tool]
        for kind in ("fp32", "int8"):
            one = fastest(row for row in near if row.tool == tool and row.precision == kind)
            if one is None or one.time is None:
                cells += ["none", "", ""]
            else:
                cells += [f"{one.setting}, {learned(one)}", _times(one.time), _percent(one.validation_accuracy)]
        yield f"| {' | '.join(cells)} |"


def _times(time: PeerTime) -> str:
    return f"{time.speedup:.2f}× ({time.low:.2f} to {time.high:.2f})"


def _told(who: str, row: PeerRow | None, dense: PeerRow) -> str:
    if row is None or row.time is None:
        return f"no network of {who} is within"
    what = f"the fastest of {who} is {row.tool}, {row.setting}, {learned(row)}: {row.time.speedup:.2f}×"
    if row.test_accuracy is None or dense.test_accuracy is None:
        return f"{what}, not tested yet"
    lost = 100 * (row.test_accuracy - dense.test_accuracy)
    return f"{what}, test {_percent(row.test_accuracy)} ({_span(row)}), {lost:+.2f} points"


def _duel(ours: PeerRow, peer: PeerRow, duels: Sequence[ChoosingRow]) -> str:
    found = [row.figures for row in duels if row.note == note_of(ours, peer)]
    if not found:
        return "they have not met in launch pairs yet"
    one = found[-1]
    ratio, bare = (
        f"{one[key]:.3f}× ({one[f'{more}low']:.3f} to {one[f'{more}high']:.3f})"
        for key, more in (("ratio", ""), ("bare", "bare "))
    )
    return f"rankfold is {ratio} as fast as the peer; by a bare loop {bare}"


# --- the picture --------------------------------------------------------------------------------------------


def draw(results: Path) -> None:
    """Validation accuracy against measured time, every tool's timed networks; MACs where there is no accuracy."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D

    rows = [row for row in read(results, PeerRow) if row.time is not None]
    names = _networks(rows)
    if not names:
        return
    colours = dict(zip(dict.fromkeys([DENSE, *(row.tool for row in rows)]), itertools.cycle(_COLOURS), strict=False))
    with mpl.rc_context({"svg.hashsalt": "rankfold", "font.size": 8}):
        figure, panels = plt.subplots(
            1, len(names), figsize=(4.6 * len(names), 4.4), layout="constrained", squeeze=False
        )
        for name, axes in zip(names, panels[0], strict=True):
            mine = [row for row in rows if row.network == name]
            is_scored = any(row.validation_accuracy is not None for row in mine)
            dense = next((row for row in mine if row.tool == DENSE), None)
            floor = 0.0
            if is_scored and dense is not None:
                whole = 100 * (dense.validation_accuracy or 0.0)
                floor = whole - _DEPTH
                axes.axhline(whole - 100 * DROP, color="k", lw=0.5, ls=":")
            for tool, colour in colours.items():
                _scatter(axes, [row for row in mine if row.tool == tool], colour, floor, is_scored=is_scored)
            label = "validation accuracy, %" if is_scored else "MACs, millions"
            axes.set(title=name, xlabel="measured time, share of the dense network's", ylabel=label)
        handles = [Line2D([], [], color=colour, marker="o", ls="", label=tool) for tool, colour in colours.items()]
        handles += [
            Line2D([], [], color="k", marker="o", ls="", mfc="none", label="0 epochs"),
            Line2D([], [], color="k", marker="s", ls="", label="int8"),
            Line2D([], [], color="k", marker="v", ls="", label=f"over {_DEPTH} points below the dense network"),
            Line2D([], [], color="k", lw=0.5, ls=":", label=f"{100 * DROP:g} points below it"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False)
        with replacing(results.with_suffix(".svg")) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
        plt.close(figure)


def _scatter(axes, rows: Sequence[PeerRow], colour: str, floor: float, *, is_scored: bool) -> None:
    """Squares are int8, hollow ones have learned nothing since the tool left them; those below the floor lie on it."""
    for row in rows:
        assert row.time is not None, "of those that were timed"
        share = 1 / row.time.speedup
        sides = [[share - 1 / row.time.high], [1 / row.time.low - share]]
        height = 100 * (row.validation_accuracy or 0.0) if is_scored else (row.macs or 0) / 1e6
        hollow = "none" if row.weight is None and row.tool not in (DENSE, INT8) else colour
        marker = "v" if height < floor else "s" if row.precision == "int8" else "o"
        axes.errorbar(share, max(height, floor), xerr=sides, color=colour, marker=marker, mfc=hollow, ms=4, lw=0.8)

"""The context of a measurement as rows of (what, value): the board, the session, the weather."""

from __future__ import annotations

from collections.abc import Callable

from ...records import Bench, Weather
from .units import one_line, quantity

_UNKNOWN = "not known"


def context_rows(bench: Bench) -> list[tuple[str, str]]:
    """Everything that must agree before this bench may be compared with another, one fact a row. An emulated board has
    no machine and no weather of its own.
    """
    if bench.context.facts.emulated:
        rows = [*_board_rows(bench), *_session_rows(bench)]
    else:
        rows = [*_board_rows(bench), *_machine_rows(bench), *_session_rows(bench), *_weather_rows(bench)]
    return [(one_line(what), one_line(value)) for what, value in rows]


def _board_rows(bench: Bench) -> list[tuple[str, str]]:
    facts = bench.context.facts
    kind = ", emulated" if facts.emulated else ", virtual machine" if facts.hypervisor else ""
    return [
        ("device", bench.context.device),
        ("processor", f"{facts.cpu_model or 'model ' + _UNKNOWN}, {facts.architecture}{kind}"),
        ("vector extensions", ", ".join(facts.isa) or _UNKNOWN),
        ("kernels' tile", f"{facts.tile} channels, {facts.layout} layout"),
    ]


def _machine_rows(bench: Bench) -> list[tuple[str, str]]:
    facts = bench.context.facts
    governors = sorted({core.governor for core in bench.context.weather_before.cores if core.governor})
    return [
        ("cores", f"measured on {_cores(bench.context.cores)} of {facts.logical_cores} logical ones"),
        ("governor", ", ".join(governors) or _UNKNOWN),
        ("memory", quantity(facts.memory_bytes, "B") if facts.memory_bytes else _UNKNOWN),
        ("system", f"{facts.os or 'system ' + _UNKNOWN}, kernel {facts.kernel}"),
    ]


def _cores(cores: list[int]) -> str:
    return f"core{'' if len(cores) == 1 else 's'} {', '.join(map(str, cores)) or _UNKNOWN}"


def _session_rows(bench: Bench) -> list[tuple[str, str]]:
    context, facts = bench.context, bench.context.facts
    options = ", ".join(f"{key}={value}" for key, value in sorted(context.session_config.items()))
    shapes = ", ".join(f"{k} {' × '.join(map(str, v))}" for k, v in sorted(context.input_shapes.items()))
    launches = sum(len(variant.launches) for variant in bench.variants)
    return [
        ("runtime", f"onnxruntime {facts.onnxruntime_version}, numpy {facts.numpy_version}, "
                    f"Python {facts.python_version}"),
        ("provider", f"{context.provider} asked for; {_placement(bench)}"),
        ("threads", str(context.threads)),
        ("session options", options or "defaults"),
        ("input", shapes or _UNKNOWN),
        ("sampling", f"{len(bench.pairs)} launch pairs, {launches} launches; "
                     f"blocks of {context.block_runs} runs after {context.dropped_runs} dropped ones"
                     if bench.pairs else "none, nothing was timed"),
        ("started", context.started_at),
    ]  # fmt: skip


def _placement(bench: Bench) -> str:
    """Nodes that each provider ran, from every variant's first launch."""
    firsts = [variant.launches[0].nodes_by_provider for variant in bench.variants if variant.launches]
    names = sorted({name for nodes in firsts for name in nodes})
    spans = {name: sorted(nodes.get(name, 0) for nodes in firsts) for name in names}
    counts = {n: f"{s[0]}" if s[0] == s[-1] else f"{s[0]} to {s[-1]}" for n, s in spans.items()}
    return ", ".join(f"{n} ran {count} nodes" for n, count in counts.items()) or f"placement {_UNKNOWN}"


def _weather_rows(bench: Bench) -> list[tuple[str, str]]:
    before, after = bench.context.weather_before, bench.context.weather_after
    blocks = [block for pair in bench.pairs for block in pair.blocks]
    steal = [block.steal_s for block in blocks if block.steal_s is not None]
    switches = [b.involuntary_switches for b in blocks if b.involuntary_switches is not None]
    return [
        ("load, 1 min", _change(before, after, lambda w: _number(w.load_1min))),
        ("memory available", _change(before, after, lambda w: quantity(w.memory_available_bytes, "B"))),
        ("frequencies", _change(before, after, _frequencies)),
        ("temperatures", _change(before, after, _temperatures)),
        ("throttled", _change(before, after, lambda w: w.throttled or _UNKNOWN)),
        ("stolen time in blocks", f"{sum(steal):.3g} s" if steal else _UNKNOWN),
        ("involuntary switches", str(sum(switches)) if switches else _UNKNOWN),
    ]


def _change(before: Weather, after: Weather | None, text: Callable[[Weather], str]) -> str:
    first = text(before)
    last = first if after is None else text(after)
    return first if first == last else f"{first} before, {last} after"


def _number(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.2f}"


def _frequencies(weather: Weather) -> str:
    known = sorted({round(core.frequency_hz / 1e6) for core in weather.cores if core.frequency_hz})
    if not known:
        return _UNKNOWN
    return f"{known[0]} MHz" if len(known) == 1 else f"{known[0]} to {known[-1]} MHz"


def _temperatures(weather: Weather) -> str:
    return ", ".join(f"{k} {v:.0f} °C" for k, v in sorted(weather.temperatures_c.items())) or _UNKNOWN

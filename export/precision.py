"""Which layers of an int8 network stay float: those that int8 makes slower on the device, those that damage most."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import onnx
import onnx_ir as ir

from ..errors import CheckFailed
from ..records import Int8Timing
from ..runtime.latency import Stopwatch, key_of
from .int8_layers import fastest_floats, surroundings, timed_layers, with_additions
from .layers import layers_of
from .reporting import Report

Make = Callable[[Collection[str]], onnx.ModelProto]  # the network as int8, but for these layers


def by_time(
    model: ir.Model, make: Make, kept: Collection[str], watch: Stopwatch, device: str, report: Report
) -> tuple[dict[str, str], Int8Timing]:
    """The layers that stay float for the sake of time, each with the reason, and what whole files take there.

    Layers are timed alone, in float and as int8 with the ways in and out that they would have; then the file with all
    of them in int8, and the one with the fastest choice, are timed against the float file, and the faster is taken.
    """
    whole = make(kept)
    around = surroundings(whole)
    layers = [layer for layer in layers_of(model) if not layer.closed and layer.name in around]
    times = timed_layers(layers, watch, report)
    slower = fastest_floats(times, around, kept)
    files = {"int8": whole.SerializeToString()}
    if 0 < len(slower) < len(times):
        files["mixed"] = make([*kept, *slower]).SerializeToString()
    report("timing whole files", 0, 1)
    found = watch.timed(ir.to_proto(model).SerializeToString(), list(files.values()), whole=True)
    report("timing whole files", 1, 1)
    ratios = {name: found[key_of(content)].ratio for name, content in files.items()}
    timing = Int8Timing(device=device, threads=watch.options.threads, **ratios)
    if min(ratios, key=lambda name: ratios[name]) == "int8":
        return {}, timing
    ways = with_additions({*kept, *slower}, around)
    said = {name: one.int8_s[around[name].sides(ways)] / one.float_s for name, one in times.items() if name in slower}
    return {name: f"float: as int8 it takes {ratio:.2f} of the time there" for name, ratio in said.items()}, timing


def by_damage(
    harm: Callable[[Collection[str]], float],
    costs: Mapping[str, float],
    kept: Collection[str],
    most: float,
    report: Report,
) -> dict[str, str]:
    """The layers that stay float so that the outputs' error is at most `most`, each with the reason.

    One after the other, that first which takes most of the error away for what it costs in float; `harm` is the error
    with these layers in float. Raises CheckFailed where one layer in int8 is still too much.
    """
    error = harm(kept)
    if error <= most:
        return {}
    saved: dict[str, float] = {}
    for number, name in enumerate(costs):
        report("weighing layers", number, len(costs))
        saved[name] = error - harm([*kept, name])
    report("weighing layers", len(costs), len(costs))
    order = sorted(costs, key=lambda name: -saved[name] / costs[name])
    floats: list[str] = []
    for name in order[:-1]:
        floats.append(name)
        error = harm([*kept, *floats])
        if error <= most:
            return {name: f"float: alone it takes {saved[name]:.2%} of the output error away" for name in floats}
    raise CheckFailed(f"--damage {most}: with all layers float but one it is still {error:.2g}; allow that")

"""What runs on a board: probe it, and time one ONNX model in this process.

Needs Python 3.8, numpy and onnxruntime 1.16, nothing else of rankfold; start it as `python -I board.py`.
It reads one JSON request a line on stdin and answers each with one JSON line: the result, or
{"error": text} when the request cannot be met. Any other failure ends the process with a traceback on
stderr. It ends when stdin does, and even within a run when nobody is left to read the answer.
"""

from __future__ import annotations

import base64
import bisect
import contextlib
import difflib
import gc
import glob
import importlib
import json
import os
import platform
import random
import select
import shutil
import statistics
import sys
import tempfile
import threading
import time
import zipfile
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # recent Linux wheels start an upload thread
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # numpy only fills the inputs here; its pool must not compete

# Vector extensions on which the runtime's kernels depend (names of /proc/cpuinfo, x86-64 and aarch64).
ISA = {
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx_vnni",
    "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16", "neon", "asimd", "asimdhp", "asimddp", "i8mm", "bf16",
    "sve", "sve2", "sme", "sme2",
}  # fmt: skip

# Session keys that change how a model runs (onnxruntime_session_options_config_keys.h and the strings of the
# 1.32.0 wheel). The runtime takes an unknown key silently, so anything else is refused here.
SESSION_KEYS = [
    "session.intra_op.allow_spinning", "session.intra_op.spin_duration_us",
    "session.intra_op.spin_backoff_max", "session.inter_op.allow_spinning",
    "session.inter_op.spin_duration_us", "session.inter_op.spin_backoff_max", "session.force_spinning_stop",
    "session.intra_op_thread_affinities", "session.dynamic_block_base", "session.set_denormal_as_zero",
    "session.disable_prepacking", "session.prepack.enable_parallel", "session.disable_quant_qdq",
    "session.enable_quant_qdq_cleanup", "session.disable_double_qdq_remover",
    "session.disable_qdq_constant_folding", "session.qdqisint8allowed", "session.x64quantprecision",
    "session.disable_cpu_ep_fallback", "session.graph_optimizations_loop_level",
    "session.disable_aot_function_inlining", "session.use_deterministic_compute",
    "optimization.enable_gelu_approximation", "optimization.enable_cast_chain_elimination",
    "optimization.disable_specified_optimizers", "optimization.constant_folding_max_output_size_in_bytes",
    "mlas.enable_gemm_fastmath_arm64_bfloat16", "mlas.disable_kleidiai", "mlas.kleidiai.conv_igemm_max_work",
    "mlas.nchwc_depthwise_sliding", "mlas.nchwc_pointwise_conv_max_input_channel_batch",
    "mlas.qnbit.force_fp32", "mlas.use_lut_gemm",
]  # fmt: skip
PLACEMENT_KEY = "session.record_ep_graph_assignment_info"
# A node's `domain` in a file (onnx.proto, field 7). The list of operator sets names it too, used or not.
NCHWC_NODE = b"\x3a\x13com.microsoft.nchwc"
MARK = 1000  # a system call that Linux does not have and count.c waits for
KERNEL_TIME = "_kernel_time"  # how the runtime's profile ends the names of nodes

LONG_RUN_S = 0.01  # the caches of a core are filled many times in it
WARMUP_CHUNK_S = 0.05  # a median over 50 ms is steady enough to see a trend of 2 %
WARMUP_LIMIT_S = 2.0  # caches, page faults and frequency settle in well under a second where it was tried
WARMUP_STABLE = 0.02
WARMUP_MAX_CHUNK = 500
SETTLED_RUNS, SETTLED_S = 12, 2.0
QUIET_POLL_S = 0.005
QUIET_BUSY_SHARE = 0.1  # a spinning thread uses its core whole; a sleeping pool under a hundredth
QUIET_LIMIT_S = 5.0
CLOCK_STEP_S = 0.05  # a clock that is only slowed or hurried moves half a millisecond a second (adjtime)
HUNG_UP_LIMIT_S = 10.0  # to finish what was asked before the asker closed its end; a run may hang


class Refused(Exception):
    """The request cannot be met; the text is for the person who asked."""


def read(path: str) -> str | None:
    """The text of a small system file, or None where there is none."""
    try:
        with open(path, errors="replace") as file:
            return file.read(1 << 20).strip("\0\n ")
    except OSError:
        return None


def read_number(path: str, scale: float = 1.0) -> float | None:
    """A system file that holds one number, times `scale`; None where there is none."""
    try:
        return float(read(path) or "") * scale
    except ValueError:
        return None


def fields(path: str) -> dict[str, str]:
    """The first `key: value` or `key=value` of each key in a system file."""
    found: dict[str, str] = {}
    for line in (read(path) or "").splitlines():
        key, separator, value = line.partition("=" if "=" in line.split(":")[0] else ":")
        if separator:
            found.setdefault(key.strip(), value.strip().strip('"'))
    return found


def kilobytes(path: str, key: str) -> int | None:
    """A `key: 123 kB` line of /proc, in bytes."""
    words = fields(path).get(key, "").split()
    return int(words[0]) * 1024 if words else None


def affinity() -> list[int]:
    """Cores this process may run on; empty where the system cannot say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def steal_s(cores: list[int]) -> float | None:
    """Seconds since boot in which a hypervisor ran something else on `cores` (/proc/stat, eighth column)."""
    names = {f"cpu{core}" for core in cores}
    rows = [line.split() for line in (read("/proc/stat") or "").splitlines()]
    stolen = [int(row[8]) for row in rows if row and row[0] in names and len(row) > 8]
    return sum(stolen) / os.sysconf("SC_CLK_TCK") if stolen else None


def throttled() -> str | None:
    """The Raspberry Pi firmware's flags, or the count of x86 throttle events."""
    flags = read("/sys/devices/platform/soc/soc:firmware/get_throttled")
    if flags is not None:
        return "firmware 0x" + flags
    counts = glob.glob("/sys/devices/system/cpu/cpu*/thermal_throttle/core_throttle_count")
    return f"events {sum(read_number(path) or 0 for path in counts):g}" if counts else None


def core_now(core: int) -> dict[str, Any]:
    """Governor and frequency of one core, as far as the system says."""
    folder = f"/sys/devices/system/cpu/cpu{core}/cpufreq/"
    frequency = read_number(folder + "scaling_cur_freq", 1000)
    return {
        "core": core,
        "governor": read(folder + "scaling_governor"),
        "frequency_hz": None if frequency is None else int(frequency),
    }


def weather(request: dict[str, Any]) -> dict[str, Any]:
    """What changes while one measures."""
    zones = sorted(glob.glob("/sys/class/thermal/thermal_zone*"))
    heat = {z: read_number(z + "/temp", 1e-3) for z in zones}  # the kernel gives millidegrees
    return {
        "load_1min": os.getloadavg()[0],
        "memory_available_bytes": kilobytes("/proc/meminfo", "MemAvailable"),
        "temperatures_c": {f"{os.path.basename(z)} {read(z + '/type')}": t for z, t in heat.items() if t is not None},
        "throttled": throttled(),
        "cores": [core_now(core) for core in affinity()],
        "steal_s": steal_s(affinity()),
    }


def clusters(cores: list[int]) -> list[list[int]]:
    """Cores by what they can do (big and LITTLE), the slowest first; all in one where the system does not say."""
    folder = "/sys/devices/system/cpu/cpu"
    groups: dict[float, list[int]] = {}
    for core in cores:
        capacity = read_number(f"{folder}{core}/cpu_capacity")
        if capacity is None:
            capacity = read_number(f"{folder}{core}/cpufreq/cpuinfo_max_freq") or 0.0
        groups.setdefault(capacity, []).append(core)
    return [groups[capacity] for capacity in sorted(groups)]


def uses_nchwc(model: bytes) -> bool:
    """Whether the runtime rewrites convolutions into its blocked layout: look into the optimised model."""
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.optimized_model_filepath = os.path.join(folder, "optimised.onnx")
        ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        with open(options.optimized_model_filepath, "rb") as file:
            return NCHWC_NODE in file.read()


def machine_of(program: str) -> bytes:
    """The processor that a program is for (ELF's e_machine, both bytes); empty where it cannot be read."""
    try:
        with open(program, "rb") as file:
            return file.read(20)[18:]
    except OSError:
        return b""


def is_emulated() -> bool:
    """Whether the program that the kernel runs is for another processor than this interpreter, as QEMU's is.

    Emulators show a process itself in /proc/self; of /proc/thread-self, which is the same, they do not know.
    """
    seen = {machine_of("/proc/thread-self/exe"), machine_of("/proc/self/exe")}
    return len(seen - {b""}) == 2


def probe(request: dict[str, Any]) -> dict[str, Any]:
    """What the board is; `request["tile_model"]` is the base64 of a small convolution."""
    import numpy
    import onnxruntime as ort

    cpu = fields("/proc/cpuinfo")
    flags = (cpu.get("flags") or cpu.get("Features") or "").split()
    return {
        "architecture": platform.machine(),
        "cpu_model": cpu.get("model name") or read("/proc/device-tree/model") or platform.processor() or None,
        "isa": sorted(ISA.intersection(flags)),
        "logical_cores": os.cpu_count() or 1,
        "affinity": affinity(),
        "clusters": clusters(affinity()),
        "memory_bytes": kilobytes("/proc/meminfo", "MemTotal"),
        "kernel": platform.system() + " " + platform.release(),
        "os": fields("/etc/os-release").get("PRETTY_NAME"),
        "hypervisor": "hypervisor" in flags if "flags" in cpu else None,  # aarch64 does not say
        "python_version": platform.python_version(),
        "numpy_version": numpy.__version__,
        "onnxruntime_version": ort.__version__,
        "providers": ort.get_available_providers(),
        "nchwc": uses_nchwc(base64.b64decode(request["tile_model"])),
        "emulated": is_emulated(),
    }


def outfit(request: dict[str, Any]) -> dict[str, Any]:
    """What is installed here, and free on the disk of `request["folder"]`, whatever is missing."""
    versions: dict[str, Any] = {}
    for package in ("numpy", "onnxruntime"):
        try:
            versions[package] = importlib.import_module(package).__version__
        except ImportError:
            versions[package] = None
    library, version = platform.libc_ver()
    return {
        "python_version": platform.python_version(),
        "architecture": platform.machine(),
        "libc": (library + " " + version).strip() or None,
        "versions": versions,
        "free_bytes": shutil.disk_usage(request["folder"]).free,
        "time_s": time.time(),
    }


def find_provider(asked: str) -> str:
    """The runtime's name for `cpu`, `xnnpack`, …; refused where this runtime does not have it."""
    import onnxruntime as ort

    available = ort.get_available_providers()
    short = {name.lower().replace("executionprovider", ""): name for name in available}
    found = short.get(asked.lower().replace("executionprovider", ""))
    if found is None:
        raise Refused(f"provider '{asked}' is not in onnxruntime {ort.__version__} there; it has {', '.join(short)}")
    return found


def check_session_config(config: dict[str, str]) -> None:
    """Refuse a key that the runtime would silently ignore."""
    for key in config:
        if key not in SESSION_KEYS:
            near = difflib.get_close_matches(key, SESSION_KEYS, 1)
            hint = f"did you mean {near[0]}?" if near else "see the runtime's list of session keys"
            raise Refused(f"session key '{key}' is unknown; {hint}")


def open_session(request: dict[str, Any], provider: str, profile: str | None = None) -> Any:
    """A session on the provider asked for, and on nothing else where that one can do without; `profile` is the
    beginning of the name of a file that the runtime writes the times of its nodes to.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = request["threads"]
    options.inter_op_num_threads = 1
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    for key, value in request["session_config"].items():
        options.add_session_config_entry(key, value)
    if hasattr(ort.InferenceSession, "get_provider_graph_assignment_info"):
        options.add_session_config_entry(PLACEMENT_KEY, "1")
    session = ort.InferenceSession(request["model"], options, providers=[provider])
    if session.get_providers()[0] != provider:
        raise Refused(f"provider {provider} did not start; the runtime fell back to {session.get_providers()}")
    return session


def placement(session: Any, provider: str) -> dict[str, int]:
    """Nodes of the optimised graph by provider; empty for the CPU's alone where this runtime cannot say."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        if provider != "CPUExecutionProvider":
            raise Refused(f"this onnxruntime cannot say which nodes run on {provider}; install a newer one")
        return {}
    nodes: dict[str, int] = {}
    for part in session.get_provider_graph_assignment_info():
        nodes[part.ep_name] = nodes.get(part.ep_name, 0) + len(part.get_nodes())
    if not nodes.get(provider):
        raise Refused(f"no node of this model runs on {provider}; they run on {', '.join(nodes) or 'nothing'}")
    return nodes


def fixed_shape(name: str, shape: list[Any], sizes: dict[str, int] | None = None) -> list[int]:
    """The shape that is timed: an open first dimension is the batch, and becomes 1; `sizes` are of open ones."""
    known: list[Any] = [(sizes or {}).get(d, d) if isinstance(d, str) else d for d in shape]
    fixed = [1 if axis == 0 and not isinstance(d, int) else d for axis, d in enumerate(known)]
    if not all(isinstance(d, int) and d > 0 for d in fixed):
        raise Refused(f"input '{name}' has shape {shape}; only the first dimension may be open; see --shape")
    return fixed


def given_shape(name: str, shape: list[Any], given: list[int]) -> list[int]:
    """The shape that was asked for, if the model takes it."""
    fits = len(given) == len(shape) and all(not isinstance(d, int) or d == g for d, g in zip(shape, given))  # noqa: B905 (Python 3.8)
    if not fits:
        raise Refused(f"input '{name}' has shape {shape}, found {given}; give one that fits")
    return list(given)


def input_shapes(entries: Any, given: dict[str, list[int]]) -> dict[str, list[int]]:
    """The shape of every input; a size given for one open dimension holds wherever its name stands."""
    names = {entry.name for entry in entries}
    if set(given) - names:
        raise Refused(f"there is no input '{min(set(given) - names)}'; the model has {', '.join(sorted(names))}")
    sizes: dict[str, int] = {}
    for entry in entries:
        if entry.name in given:
            named = zip(entry.shape[1:], given_shape(entry.name, entry.shape, given[entry.name])[1:])  # noqa: B905
            sizes.update({d: g for d, g in named if isinstance(d, str)})
    return {e.name: list(given[e.name]) if e.name in given else fixed_shape(e.name, e.shape, sizes) for e in entries}


def make_feed(entries: Any, request: dict[str, Any]) -> dict[str, Any]:
    """An array for every input: the caller's own where an npz file is named, else fixed random ones."""
    if request.get("inputs"):
        return read_feed(entries, request["inputs"])
    shapes = input_shapes(entries, request.get("shapes") or {})
    return {e.name: make_input(e.type, e.name, shapes[e.name], request["seed"]) for e in entries}


def read_feed(entries: Any, path: str) -> dict[str, Any]:
    """The arrays of an npz file, in the types and shapes that the model takes."""
    import numpy

    feed = {}
    try:
        with numpy.load(path, allow_pickle=False) as stored:
            for entry in entries:
                kind = entry.type.replace("tensor(", "").replace(")", "")
                array = stored[entry.name]
                given_shape(entry.name, entry.shape, list(array.shape))
                feed[entry.name] = array.astype({"float": "float32", "double": "float64"}.get(kind, kind))
    except (OSError, ValueError, KeyError, TypeError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise Refused(f"{path}: expected an npz file with {', '.join(e.name for e in entries)} ({error})") from error
    return feed


def make_input(kind: str, name: str, shape: list[int], seed: int) -> Any:
    """A fixed array: normal numbers for floats, none denormal even in float16; small integers else."""
    import numpy

    rng = numpy.random.default_rng(seed)
    kind = kind.replace("tensor(", "").replace(")", "")
    floats = {"float": "float32", "double": "float64", "float16": "float16"}
    if kind in floats:
        normal = rng.standard_normal(shape)
        return numpy.where(abs(normal) < 1e-3, 1e-3, normal).astype(floats[kind])
    if kind in ("uint8", "int8"):
        return rng.integers(0, 128, shape).astype(kind)
    if kind in ("bool", "int16", "int32", "int64", "uint16", "uint32", "uint64"):
        return numpy.zeros(shape, kind)  # an index must be in range whatever the table
    raise Refused(f"input '{name}' is of type {kind}; a tensor of numbers is expected")


def run_timed(session: Any, feed: dict[str, Any], runs: int, clock: Any = None) -> list[float]:
    """Seconds of each of `runs` inferences."""
    clock = clock or time.perf_counter
    samples = []
    for _ in range(runs):
        begin = clock()
        session.run(None, feed)
        samples.append(clock() - begin)
    return samples


def warm_up(session: Any, feed: dict[str, Any], first_s: float) -> list[float]:
    """Run in chunks until the medians of two in a row agree, or the time is up; the seconds of all runs."""
    runs = int(min(max(3, WARMUP_CHUNK_S / first_s), WARMUP_MAX_CHUNK))
    samples = run_timed(session, feed, runs)
    before = statistics.median(samples)
    while sum(samples) < WARMUP_LIMIT_S:
        chunk = run_timed(session, feed, runs)
        samples += chunk
        now = statistics.median(chunk)
        if abs(now / before - 1) < WARMUP_STABLE:
            break
        before = now
    return samples


def running_threads() -> int:
    """Threads of this process, this one apart, that run or wait for a core (Linux; else 0)."""
    stats = [read(path) or "" for path in glob.glob("/proc/self/task/*/stat")]
    me = str(threading.get_native_id())
    return sum(stat.rpartition(")")[2].split()[:1] == ["R"] and stat.split()[0] != me for stat in stats)


def wait_until_quiet() -> None:
    """Wait until this process's threads sleep: a pool that still spins would slow whoever is timed next.

    A thread that spins but gets no core uses no time, so its state counts too; twice in a row, to be sure.
    """
    quiet = 0
    for _ in range(int(QUIET_LIMIT_S / QUIET_POLL_S)):
        before = time.process_time()
        time.sleep(QUIET_POLL_S)
        busy = time.process_time() - before > QUIET_BUSY_SHARE * QUIET_POLL_S or running_threads()
        quiet = 0 if busy else quiet + 1
        if quiet == 2:
            return
    raise Refused(f"threads still spin {QUIET_LIMIT_S:g} s after a run; lower session.intra_op.spin_duration_us")


def pin(cores: list[int]) -> None:
    """Stay on `cores`; to be called before the runtime starts threads, which inherit it."""
    if cores:
        os.sched_setaffinity(0, cores)


def contest(request: dict[str, Any]) -> dict[str, Any]:
    """Models in turns, one run each, in another random order every round; seconds by model and round.

    A run finds the caches as the other models left them, as a layer in a network does. With `request["alone"]` it finds
    them as it left them itself, as a network does that is served: two of its runs, untimed, go before, unless a run
    takes so long that it fills the caches anyway. It ends after `request["rounds"]`, or when `request["seconds"]` are
    over and three are done.
    """
    pin(request["cores"])
    check_session_config(request["session_config"])
    provider = find_provider(request["provider"])
    config = dict(request["session_config"])
    if request["threads"] > 1:
        config.setdefault("session.force_spinning_stop", "1")  # every session has a pool of its own
    runs = []
    for path in request["models"]:
        session = open_session({**request, "session_config": config, "model": path}, provider)
        runs.append((session, make_feed(session.get_inputs(), request), []))
    gc.collect()
    gc.disable()
    clock = contest_clock(request["threads"], provider)
    order, begin = random.Random(request["seed"]), time.perf_counter()
    for warm in (True, True, *[False] * request["rounds"]):
        for session, feed, samples in order.sample(runs, len(runs)):
            if request["alone"] and (not samples or samples[-1] < LONG_RUN_S):
                session.run(None, feed)
                session.run(None, feed)
            timed = run_timed(session, feed, 1, clock)
            if timed[0] <= 0:  # some virtual machines count a thread's time in steps: a short run may fit in one
                timed = run_timed(session, feed, 1)
            samples += [] if warm else timed
        done = len(runs[0][2])
        if done >= 3 and time.perf_counter() - begin > request["seconds"]:
            break
    return {"samples_s": [samples for _, _, samples in runs]}


def contest_clock(threads: int, provider: str) -> Any:
    """What a run is timed by: where all of its work is this thread's, the thread's own time.

    A competitor on the same core takes it away by slices of some ms: long runs always lose some, short ones seldom, and
    a ratio of the two would be wrong by as much.
    """
    mine = threads == 1 and provider == "CPUExecutionProvider" and hasattr(time, "thread_time")
    return time.thread_time if mine else time.perf_counter


def operators(request: dict[str, Any]) -> dict[str, Any]:
    """Seconds of every node in each of `request["runs"]` runs, from the runtime's profile; the first is dropped."""
    pin(request["cores"])
    check_session_config(request["session_config"])
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(request, find_provider(request["provider"]), os.path.join(folder, "profile"))
        feed = make_feed(session.get_inputs(), request)
        wall_s = time.time() - time.perf_counter()
        run_timed(session, feed, 1 + request["runs"])
        if abs(time.time() - time.perf_counter() - wall_s) > CLOCK_STEP_S:
            raise Refused("the clock there was set while the runtime's profile, which goes by it, was taken; run again")
        with open(session.end_profiling()) as file:
            return per_node(json.load(file), request["runs"])


def count(request: dict[str, Any]) -> dict[str, Any]:
    """Run every model `request["runs"]` times, with a mark before and after each run, for an emulator to count between.

    Inputs and outputs are bound, so that little of the way from Python is counted.
    """
    import ctypes

    mark = ctypes.CDLL(None).syscall
    check_session_config(request["session_config"])
    provider = find_provider(request["provider"])
    for path in request["models"]:
        session = open_session({**request, "model": path}, provider)
        binding = session.io_binding()
        for name, array in make_feed(session.get_inputs(), request).items():
            binding.bind_cpu_input(name, array)
        for output in session.get_outputs():
            binding.bind_output(output.name)
        gc.collect()
        gc.disable()
        settle(session, binding)
        for _ in range(request["runs"]):
            mark(MARK)
            session.run_with_iobinding(binding)
            mark(MARK)
    return {"models": len(request["models"])}


def settle(session: Any, binding: Any) -> None:
    """Run until memory is allocated and Python has specialised its code, which takes some of its calls; where a run is
    long the code around it does not matter.
    """
    begin = time.perf_counter()
    for done in range(SETTLED_RUNS):
        session.run_with_iobinding(binding)
        if done and time.perf_counter() - begin > SETTLED_S:
            break


def outputs(session: Any, path: str) -> dict[str, Any]:
    """What a model puts out for the arrays of an npz file."""
    found = session.run(None, read_feed(session.get_inputs(), path))
    if not all(getattr(array, "dtype", None) is not None and array.dtype.kind in "fiub" for array in found):
        raise Refused("expected tensors of numbers as outputs")
    return {
        "outputs": [
            {"dtype": str(a.dtype), "shape": list(a.shape), "base64": base64.b64encode(a.tobytes()).decode()}
            for a in found
        ]
    }


def per_node(events: list[dict[str, Any]], runs: int) -> dict[str, Any]:
    """The last `runs` runs of a profile and the nodes within each, in seconds."""
    whole = [event for event in events if event["name"] == "model_run"][-runs:]
    begins = [event["ts"] for event in whole]
    nodes: dict[tuple[str, str, str], list[float]] = {}
    for event in events:
        run = bisect.bisect_right(begins, event["ts"]) - 1
        if event["cat"] != "Node" or not event["name"].endswith(KERNEL_TIME) or run < 0:
            continue
        args = event["args"]
        key = event["name"][: -len(KERNEL_TIME)], args.get("op_name", ""), args.get("provider", "")
        nodes.setdefault(key, [0.0] * runs)[run] += event["dur"] * 1e-6
    return {
        "runs_s": [event["dur"] * 1e-6 for event in whole],
        "nodes": [{"name": n, "op": op, "provider": p, "samples_s": s} for (n, op, p), s in nodes.items()],
    }


class Server:
    """One model in this process, ready to be timed."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.cores = request["cores"]
        self.threads = request["threads"]
        pin(self.cores)
        check_session_config(request["session_config"])
        provider = find_provider(request["provider"])
        before_bytes = kilobytes("/proc/self/status", "VmRSS")
        begin = time.perf_counter()
        self.session = open_session(request, provider)
        creation_s = time.perf_counter() - begin
        self.feed = make_feed(self.session.get_inputs(), request)
        gc.collect()
        gc.disable()  # a collection inside a timed run would be counted as inference
        first_s = run_timed(self.session, self.feed, 1)[0]
        warmup_s = warm_up(self.session, self.feed, first_s)
        self.rest()
        self.facts = {
            "session_creation_s": creation_s,
            "first_run_s": first_s,
            "warmup_s": warmup_s,
            "baseline_rss_bytes": before_bytes,
            "peak_rss_bytes": kilobytes("/proc/self/status", "VmHWM"),
            "providers": self.session.get_providers(),
            "nodes_by_provider": placement(self.session, provider),
            "input_shapes": {name: list(array.shape) for name, array in self.feed.items()},
        }

    def rest(self) -> None:
        """End a turn: a pool of threads must sleep before another process is timed."""
        if self.threads > 1:
            wait_until_quiet()

    def block(self, runs: int, dropped: int, rest: bool = True) -> dict[str, Any]:
        """Time `runs` inferences after `dropped` that are not counted; with `rest` end when all threads sleep."""
        import resource

        run_timed(self.session, self.feed, dropped)
        stolen = steal_s(self.cores)
        switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
        cpu = time.process_time()
        samples = run_timed(self.session, self.feed, runs)
        answer = {
            "samples_s": samples,
            "cpu_s": time.process_time() - cpu,
            "involuntary_switches": resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - switches,
            "steal_s": None if stolen is None else max(0.0, (steal_s(self.cores) or 0.0) - stolen),
        }
        if rest:
            self.rest()
        return answer

    def paced(self, rate_hz: float, frames: int) -> dict[str, Any]:
        """Run on frames that arrive at a fixed rate; one that arrives while a run is on is dropped.

        Seconds of each run, and from its frame's arrival to its end; how many frames were dropped.
        """
        clock, period_s = time.perf_counter, 1.0 / rate_hz
        samples, responses, dropped = [], [], 0
        begin = clock() + period_s
        for frame in range(frames):
            due = begin + frame * period_s
            wait_s = due - clock()
            if wait_s < 0:
                dropped += 1
                continue
            time.sleep(wait_s)
            started = clock()
            self.session.run(None, self.feed)
            ended = clock()
            samples.append(ended - started)
            responses.append(ended - due)
        self.rest()
        return {"samples_s": samples, "responses_s": responses, "dropped": dropped}


def runtime_errors() -> Any:
    """The exceptions of the runtime, which share no base class; none if it was not imported."""
    state = sys.modules.get("onnxruntime.capi.onnxruntime_pybind11_state")
    kinds = [v for v in vars(state).values() if isinstance(v, type)] if state else []
    return tuple(kind for kind in kinds if issubclass(kind, Exception))


def end_when_alone(answers: int) -> None:
    """End this process as soon as nobody can read its answers, or a while after the last request could come.

    It sleeps in the kernel until then, so nothing that is timed is disturbed.
    """
    poller = select.poll()
    poller.register(0, 0)  # hang-ups are always told
    poller.register(answers, 0)
    if answers not in {descriptor for descriptor, _ in poller.poll()}:
        poller.unregister(0)
        poller.poll(HUNG_UP_LIMIT_S * 1000)
    os._exit(1)


def main() -> None:
    """Answer requests until stdin ends."""
    with contextlib.suppress(ImportError):  # before anyone asks: the two processes of a pair load at the same time
        import onnxruntime  # noqa: F401
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the runtime prints goes to stderr, never between two answers
    threading.Thread(target=end_when_alone, args=(answers.fileno(),), daemon=True).start()
    server: Server | None = None
    loaded: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["command"] == "serve":
                server = Server(request)
                answer = server.facts
            elif request["command"] == "block" and server is not None:
                answer = server.block(request["runs"], request["dropped"], request["rest"])
            elif request["command"] == "paced" and server is not None:
                answer = server.paced(request["rate_hz"], request["frames"])
            elif request["command"] == "load":
                loaded = open_session(request, find_provider(request["provider"]))
                answer = {}
            elif request["command"] == "outputs" and loaded is not None:
                answer = outputs(loaded, request["inputs"])
            else:
                commands = {
                    "outfit": outfit,
                    "probe": probe,
                    "weather": weather,
                    "operators": operators,
                    "contest": contest,
                    "count": count,
                }
                answer = commands[request["command"]](request)
        except Refused as error:
            answer = {"error": str(error)}
        except runtime_errors() as error:
            answer = {"error": " ".join(str(error).split())[:500]}
        answers.write(json.dumps(answer, allow_nan=False) + "\n")
        answers.flush()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        main()

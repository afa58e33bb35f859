"""What one writes to time a model: load it, run it some times, then time each run. It speaks the board's protocol."""

import json
import os
import sys
import time

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

session, feed = None, {}
for line in sys.stdin:
    request = json.loads(line)
    if request["command"] == "serve":
        import numpy as np
        import onnxruntime as ort

        os.sched_setaffinity(0, request["cores"])
        options = ort.SessionOptions()
        options.intra_op_num_threads = request["threads"]
        began = time.perf_counter()
        session = ort.InferenceSession(request["model"], options, providers=["CPUExecutionProvider"])
        created_s = time.perf_counter() - began
        entry = session.get_inputs()[0]
        shape = [1, *entry.shape[1:]]
        feed = {entry.name: np.random.default_rng(request["seed"]).standard_normal(shape).astype(np.float32)}
        began = time.perf_counter()
        session.run(None, feed)
        first_s = time.perf_counter() - began
        warmup_s = []
        for _ in range(100):
            began = time.perf_counter()
            session.run(None, feed)
            warmup_s.append(time.perf_counter() - began)
        answer = {
            "session_creation_s": created_s,
            "first_run_s": first_s,
            "warmup_s": warmup_s,
            "baseline_rss_bytes": None,
            "peak_rss_bytes": None,
            "providers": session.get_providers(),
            "nodes_by_provider": {},
            "input_shapes": {entry.name: shape},
        }
    else:
        assert session is not None, "no model was named"
        times = []
        for _ in range(request["dropped"] + request["runs"]):
            began = time.perf_counter()
            session.run(None, feed)
            times.append(time.perf_counter() - began)
        answer = {
            "samples_s": times[request["dropped"] :],
            "cpu_s": None,
            "steal_s": None,
            "involuntary_switches": None,
        }
        if len(os.sched_getaffinity(0)) > 1:
            time.sleep(0.1)  # let its pool sleep before the other is timed
    print(json.dumps(answer), flush=True)

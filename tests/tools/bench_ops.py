#!/usr/bin/env python3
"""Measures opbench and PyTorch side by side on a file of cases; appends a row a case to a file.

usage: bench_ops.py [CASES.jsonl] [--device cpu|cuda] [--only OP,OP] [--bin DIR] [--out FILE]
                    [--threads N] [--rounds N] [--no-compile] [--seconds S]

Both sides see a case one right after the other, for several rounds, and the best of each counts:
the machine may have others to serve. Times are the device's for one call with cold caches (median
of 20 or more), and wall time of a call in a loop of 100. On a GPU PyTorch runs eager and, where it
has something to fuse, compiled; ratios are the time of its faster side over ours. Share is of the
bandwidth of a copy, measured first in the same run. A short table comes last.
"""
import argparse, datetime, json, math, os, pathlib, statistics, subprocess, sys, time

root = pathlib.Path(__file__).resolve().parents[2]
library_ops = ("matmul", "linear", "conv1d", "conv2d", "attention", "flash_attention")


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("cases", nargs="?", default=root / "tests/tools/cases_cpu.jsonl")
    p.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    p.add_argument("--only", default="")
    p.add_argument("--bin", default=root / "build/bin")
    p.add_argument("--out", default=root / "tests/tools/results/ops.jsonl")
    p.add_argument("--threads", type=int, default=2, help="on the CPU, of both sides")
    p.add_argument("--rounds", type=int, default=0, help="default: 3 on the CPU, 1 on a GPU")
    p.add_argument("--no-compile", action="store_true")
    p.add_argument("--seconds", type=float, default=math.inf, help="begin no case after that")
    return p.parse_args()


a = arguments()
os.environ["OMP_NUM_THREADS"] = str(a.threads)
import torch

from machine import cpu_name, output
from pytorch_ops import build

torch.set_num_threads(a.threads)
torch.backends.cudnn.benchmark = True


class Clock:
    """Times one call as opbench does: events on a GPU, a clock on the CPU."""

    def __init__(self):
        if a.device == "cuda":
            self.events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]

    def start(self):
        self.began = self.events[0].record() if a.device == "cuda" else time.perf_counter()

    def stop(self):
        self.ended = self.events[1].record() if a.device == "cuda" else time.perf_counter()

    def microseconds(self):
        if a.device == "cuda":
            return self.events[0].elapsed_time(self.events[1]) * 1e3
        return (self.ended - self.began) * 1e6


def wait():
    if a.device == "cuda":
        torch.cuda.synchronize()


def wall(f):
    start = time.perf_counter()
    f()
    wait()
    return time.perf_counter() - start


def launching(f):
    """Cycles of the GPU that cover what the host takes to launch f, with half as much again: not
    many more, because a GPU that has rested runs faster. None where f keeps the GPU busy for longer
    than that: the host is ahead then, and opbench does not let the GPU rest either."""
    launches, calls = [], []
    for _ in range(5):
        wait()
        start = time.perf_counter()
        f()
        launches.append(time.perf_counter() - start)
        wait()
        calls.append(time.perf_counter() - start)
    seconds = statistics.median(launches)
    return 0 if statistics.median(calls) > 3 * seconds else int(1.7e9 * (1.5 * seconds + 20e-6))


def cold(f):
    """Microseconds of one call, median, the caches flushed before each. A GPU is kept waiting until
    the call's launches have arrived where they take long, so that only its own work is between the
    events: launching what torch.compile made can take longer than the kernels."""
    spent, n = 0, 0
    while n < 3 or spent < 0.02:
        spent, n = spent + wall(f), n + 1
    clocks = [Clock() for _ in range(min(200, max(20, int(0.1 / wall(f)))))]
    flush = torch.empty((64 if a.device == "cuda" else 16) << 20, device=a.device)  # as opbench
    cycles = launching(f) if a.device == "cuda" else 0
    for clock in clocks:
        flush.fill_(1)
        if cycles:
            torch.cuda._sleep(cycles)
        clock.start()
        f()
        clock.stop()
    wait()
    return statistics.median(c.microseconds() for c in clocks)


def in_a_loop(f):
    """Wall microseconds of a call, launching included: the median of three loops."""
    calls = 5 if min(wall(f), wall(f)) > 0.02 else 100

    def loop(n):
        for _ in range(n):
            f()

    wall(lambda: loop(calls // 10))
    return statistics.median(wall(lambda: loop(calls)) for _ in range(3)) / calls * 1e6


def directions(f, inputs, name):
    y = f(*inputs)
    g = torch.rand_like(y) * 2 - 1
    wanted = [t for t in inputs if t.requires_grad]
    return {f"{name}_fwd_us": cold(lambda: f(*inputs)),
            f"{name}_bwd_us": cold(lambda: torch.autograd.grad(y, wanted, g, retain_graph=True))}


def peer(c, compiled):
    tf32 = c.get("dtype") == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    f, inputs = build(c, a.device)
    row = directions(f, inputs, "eager")
    with torch.no_grad():
        row["eager_call_us"] = in_a_loop(lambda: f(*inputs))
    if compiled and c["op"] not in library_ops:
        torch._dynamo.reset()
        try:
            row |= directions(torch.compile(f), inputs, "compiled")
        except Exception as error:
            row["compiled_error"] = str(error).splitlines()[0][:100]
    if "attention" in c["op"] and a.device == "cuda" and c.get("dtype") == "bf16":
        from torch.nn.attention import SDPBackend, sdpa_kernel
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            row |= directions(f, inputs, "fa2")
    return row


class Ours:
    """opbench, which answers a case at a time."""

    def __init__(self):
        self.process = subprocess.Popen(
            [f"{a.bin}/opbench", "--cases", "/dev/stdin", "--device", a.device],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, c):
        self.process.stdin.write(json.dumps(c) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def copy_gbps():
    n = 1 << (29 if a.device == "cuda" else 25)
    x, y = torch.rand(n, device=a.device), torch.empty(n, device=a.device)
    return max(8e-3 * n / cold(lambda: y.copy_(x)) for _ in range(1 if a.device == "cuda" else 3))


def machine():
    if a.device == "cuda":
        return torch.cuda.get_device_name()
    return f"{cpu_name()}, {a.threads} threads"


def best(rows):
    """The smallest of each time over the rounds."""
    row = {}
    for r in rows:
        for key, value in r.items():
            faster = key.endswith("_us") and key in row
            row[key] = min(row[key], value) if faster else value
    return row


def finish(row, copy):
    for way in ("fwd", "bwd"):
        if f"{way}_us" not in row:
            continue
        row[f"gbps_{way}"] = row[f"min_bytes_{way}"] * 1e-3 / row[f"{way}_us"]
        row[f"share_{way}"] = row[f"gbps_{way}"] / copy
        peers = [row[k] for k in (f"eager_{way}_us", f"compiled_{way}_us") if k in row]
        if peers:
            row[f"ratio_{way}"] = min(peers) / row[f"{way}_us"]
    if "call_fwd_us" in row and "eager_call_us" in row:
        row["ratio_call"] = row["eager_call_us"] / row["call_fwd_us"]
    return {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}


def label(c):
    shape = "x".join(map(str, c.get("shape", [])))
    weight = "*" + "x".join(map(str, c["weight"])) if "weight" in c else ""
    rest = [f" {k[0]}{c[k]:g}" for k in c if isinstance(c[k], (bool, int, float))]
    return f"{c['op']} {c.get('dtype', 'f32')} {shape}{weight}{''.join(rest)}"


def table(rows):
    print(f"\n{'case':56} {'fwd us':>9} {'bwd us':>9}   {'of a copy':9}   "
          f"{'x fwd':>6} {'bwd':>6} {'call':>6}")
    for c, r in rows:
        if "error" in r:
            print(f"{label(c):56} {r['error'][:60]}")
            continue
        n = lambda k, form="{:.2f}": form.format(r[k]) if k in r else "-"
        print(f"{label(c):56} {n('fwd_us', '{:.1f}'):>9} {n('bwd_us', '{:.1f}'):>9}   "
              f"{n('share_fwd')} {n('share_bwd')}   "
              f"{n('ratio_fwd'):>6} {n('ratio_bwd'):>6} {n('ratio_call'):>6}")
    for key in ("ratio_fwd", "ratio_bwd", "ratio_call"):
        values = [r[key] for _, r in rows if r.get(key, 0) > 0]
        if values:
            mean = statistics.geometric_mean(values)
            print(f"{key}: geometric mean of {len(values)} {mean:.2f}, least {min(values):.2f}")


def main():
    cases = [json.loads(l) for l in open(a.cases) if l.strip() and not l.startswith("#")]
    only = [o for o in a.only.split(",") if o]
    cases = [c for c in cases if not only or c["op"] in only]
    copy = copy_gbps()
    about = {
        "date": datetime.date.today().isoformat(), "device": a.device,
        "machine": machine(),
        "pytorch": torch.__version__, "commit": output("git", "rev-parse", "--short", "HEAD", cwd=root),
        "copy_gbps": round(copy, 1),
    }
    print(json.dumps(about), flush=True)
    ours, rows, started = Ours(), [], time.time()
    for c in cases:
        if time.time() - started > a.seconds:
            print(f"{a.seconds} s are over: {len(cases) - len(rows)} cases not run")
            break
        results = []
        for turn in range(a.rounds or (1 if a.device == "cuda" else 3)):
            results.append(ours(c))
            try:
                results.append(peer(c, a.device == "cuda" and not a.no_compile and turn == 0))
            except Exception as error:
                results.append({"peer_error": str(error)[:200]})
            if a.device == "cuda":
                torch.cuda.empty_cache()
        row = finish(best(results), copy)
        rows.append((c, row))
        with open(a.out, "a") as out:
            out.write(json.dumps(about | row) + "\n")
    table(rows)


main()

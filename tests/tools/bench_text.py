#!/usr/bin/env python3
"""Measures train_transformer on text and prints one JSON line, for tests/tools/results/text.jsonl.

usage: bench_text.py [--bin DIR] [--text FILE] [--device cpu|cuda] [--config char|gpt2]
                     [--max-iters N] [--eval-interval N] [--threads N] [--twice]
                     [--peer "NAME: COMMAND"]...

The best validation loss and its step, the median of the sections' tokens/s, and the most memory in
tensors. A section is what lies between two evaluations; the first has the run's start in it, which
peers leave out, so there should be three or more. --twice trains again and says whether the
checkpoints are equal. --peer names a command that prints a JSON line with tok_per_s and peak_GB;
it runs just before ours.
"""
import argparse, datetime, filecmp, json, os, shlex, statistics, subprocess, sys, tempfile

from machine import cpu_name, output


def machine(a):
    if a.device == "cuda":
        return output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    return f"{cpu_name()}, {a.threads or os.cpu_count()} threads"


def peer(named):
    name, command = named.split(":", 1)
    row = json.loads(output(*shlex.split(command)).splitlines()[-1])
    return {"peer": f"{row['peer'].replace('torch', 'PyTorch')} {name}",
            "tokens_per_second": row["tok_per_s"], "peak_gb": row.get("peak_GB")}


def train(a, out):
    command = [f"{a.bin}/train_transformer", "--task", "text", "--device", a.device, "--config",
               a.config, "--out", out, "--target", "1000"]
    command += ["--text", a.text] if a.text else []
    command += ["--max-iters", str(a.max_iters)] if a.max_iters else []
    command += ["--eval-interval", str(a.eval_interval)] if a.eval_interval else []
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr)
    return [json.loads(line) for line in open(f"{out}/metrics.jsonl")]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--bin", default="build/bin")
    p.add_argument("--text", default="")
    p.add_argument("--device", default="cpu")
    p.add_argument("--config", default="char")
    p.add_argument("--max-iters", type=int, default=0)
    p.add_argument("--eval-interval", type=int, default=0)
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--twice", action="store_true")
    p.add_argument("--peer", action="append", default=[])
    a = p.parse_args()
    if a.threads:
        os.environ["OMP_NUM_THREADS"] = str(a.threads)
    with tempfile.TemporaryDirectory() as folder:
        peers = [peer(named) for named in a.peer]
        records = train(a, f"{folder}/0")
        if a.twice:
            train(a, f"{folder}/1")
            files = [f"{folder}/{i}/checkpoint.safetensors" for i in (0, 1)]
            same = {"same_bytes": filecmp.cmp(*files, shallow=False)}
    measured = [r for r in records if "validation_loss" in r]
    best = min(measured, key=lambda r: r["validation_loss"])
    print(json.dumps({
        "date": datetime.date.today().isoformat(),
        "commit": output("git", "rev-parse", "--short", "HEAD"),
        "machine": machine(a), "device": a.device, "config": a.config,
        "validation_loss": round(best["validation_loss"], 4), "at_step": best["step"],
        "steps": records[-1]["step"], "seconds": round(sum(r["seconds"] for r in measured), 1),
        "tokens_per_second": round(statistics.median(r["tokens_per_second"] for r in measured)),
        "peak_gb": round(max(r["peak_bytes"] for r in measured) / 1e9, 2),
        "peers": peers} | (same if a.twice else {})))


main()

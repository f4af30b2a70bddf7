#!/usr/bin/env python3
"""Measures train_mnist over several seeds and prints one JSON line, for tests/tools/results/.

usage: bench_mnist.py [--bin DIR] [--data DIR] [--device cpu|cuda] [--model default|reference]
                      [--epochs N] [--seeds N] [--threads N] [--jobs N] [--drawn] [--peer "COMMAND"]

The test accuracy of each seed, the seconds of the fastest epoch and its images/s (training alone,
as the trainer's metrics.jsonl has them). The first seed is trained twice: same_bytes says whether
the two checkpoints are equal. --peer names a command that prints a JSON line with img_per_s; it
runs just before and just after ours, and the better of the two counts.
"""
import argparse, concurrent.futures, datetime, filecmp, json, os, shlex, statistics, subprocess, sys
import tempfile

from machine import cpu_name, output


def train(a, seed, out):
    command = [f"{a.bin}/train_mnist", "--device", a.device, "--model", a.model, "--epochs",
               str(a.epochs), "--seed", str(seed), "--out", out, "--target", "0"]
    if a.data:
        command += ["--data", a.data]
    if a.drawn:
        command.append("--drawn")
    env = dict(os.environ)
    if a.threads:
        env["OMP_NUM_THREADS"] = str(a.threads)
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode != 0:
        sys.exit(done.stderr)
    records = [json.loads(line) for line in open(f"{out}/metrics.jsonl")]
    return [r for r in records if "test_accuracy" in r]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--bin", default="build/bin")
    p.add_argument("--data", default="")
    p.add_argument("--device", default="cpu")
    p.add_argument("--model", default="default")
    p.add_argument("--epochs", type=int, default=3)
    p.add_argument("--seeds", type=int, default=5)
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--jobs", type=int, default=1, help="seeds at a time; 1 when speed matters")
    p.add_argument("--drawn", action="store_true")
    p.add_argument("--peer", default="")
    a = p.parse_args()

    def peer():
        if not a.peer:
            return None
        lines = output(*shlex.split(a.peer)).splitlines()
        return json.loads(lines[-1])["img_per_s"] if lines else None

    with tempfile.TemporaryDirectory() as folder:
        before = peer()
        with concurrent.futures.ThreadPoolExecutor(a.jobs) as pool:
            runs = list(pool.map(lambda s: train(a, s, f"{folder}/{s}"), range(a.seeds)))
        train(a, 0, f"{folder}/again")
        after = peer()
        same = filecmp.cmp(f"{folder}/0/checkpoint.safetensors",
                           f"{folder}/again/checkpoint.safetensors", shallow=False)
    accuracies = [round(100 * run[-1]["test_accuracy"], 2) for run in runs]
    epochs = [e for run in runs for e in run]
    best = min(epochs, key=lambda e: e["seconds"])
    gpu = output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    row = {
        "date": datetime.date.today().isoformat(),
        "commit": output("git", "rev-parse", "--short", "HEAD"),
        "machine": gpu if a.device == "cuda" else cpu_name(),
        "device": a.device, "threads": a.threads or os.cpu_count(), "jobs": a.jobs,
        "model": a.model, "trained_on": "drawn digits" if a.drawn else "MNIST",
        "epochs": a.epochs, "accuracy": accuracies,
        "mean_accuracy": round(statistics.mean(accuracies), 3),
        "epoch_seconds": round(best["seconds"], 3),
        "images_per_second": round(best["images_per_second"]), "same_bytes": same,
    }
    peers = [r for r in (before, after) if r]
    if peers:
        row["peer"] = a.peer
        row["peer_images_per_second"] = max(peers)
        row["ratio"] = round(row["images_per_second"] / max(peers), 3)
    print(json.dumps(row))


main()

#!/usr/bin/env python3
"""Writes what the READMEs show of code, output and figures between their markers.

usage: readme.py [--bin DIR] [--check]

  nn sample           tests/tools/xor.cpp, and what it prints
  quickstart output   tests/tools/results/quickstart.txt: a real run without its progress lines
  transformer output  tests/tools/results/transformer.txt: another
  mnist figures       tests/tools/results/mnist.jsonl, the newest row of each kind
  text figures        tests/tools/results/text.jsonl, the newest row of each kind
  catalogue           ops/README.md: tests/tools/catalogue.py, from results/ops.jsonl

--check writes nothing and exits with 1 when a README is not what it would write.
"""
import argparse, json, pathlib, subprocess, sys

import catalogue

root = pathlib.Path(__file__).resolve().parents[2]
results = root / "tests/tools/results"


def sample(bin_dir):
    code = (root / "tests/tools/xor.cpp").read_text().strip()
    shown = subprocess.run([f"{bin_dir}/xor"], capture_output=True, text=True, check=True).stdout
    return f"```cpp\n{code}\n```\n\n```\n{shown.strip()}\n```"


def run(name):
    path = results / f"{name}.txt"
    return f"```\n{path.read_text().strip()}\n```" if path.exists() else ""


def figures():
    path = results / "mnist.jsonl"
    if not path.exists():
        return ""
    newest = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        key = ("device", "machine", "model", "trained_on", "jobs")
        newest[tuple(row[k] for k in key) + (row.get("peer"),)] = row
    table = ["| net | trained on | machine | test accuracy after | an epoch | images/s | PyTorch |",
             "| --- | --- | --- | --- | --- | --- | --- |"]
    for row in newest.values():
        machine = row["machine"].split(",")[0]
        if row["device"] == "cpu":
            machine += f", {row['threads']} threads"
        n = len(row["accuracy"])
        mean = f"{row['mean_accuracy']:.2f} % after {row['epochs']}, " + (
            f"mean of {n} seeds" if n > 1 else "one seed")
        alone = row["jobs"] == 1
        speed = f"{row['epoch_seconds']} s | {row['images_per_second']:,}" if alone else "|"
        peer = row.get("peer_images_per_second")
        peer = f"{peer:,} images/s: {row['peer']}" if peer else ""
        table.append(f"| {row['model']} | {row['trained_on']} | {machine} | {mean} | {speed} | {peer} |")
    return "\n".join(table)


nets = {("char", "cpu"): "4 layers, 4 heads, 128 wide, context 64, batch 12, f32",
        ("char", "cuda"): "6 layers, 6 heads, 384 wide, context 256, batch 64, bf16",
        ("gpt2", "cuda"): "GPT-2 124M: 12 layers, context 1024, batch 32, bf16"}


def speed(row):
    memory = f", {row['peak_gb']} GB" if row.get("peak_gb") else ""
    return f"{row['tokens_per_second']:,}{memory}"


def text_figures():
    newest = {}
    for line in (results / "text.jsonl").read_text().splitlines():
        row = json.loads(line)
        newest[row["config"], row["device"], row["machine"]] = row
    table = ["| net | machine | best validation loss | tokens/s, memory | PyTorch |",
             "| --- | --- | --- | --- | --- |"]
    for (config, device, machine), row in newest.items():
        learned = row["steps"] >= 1000
        loss = f"{row['validation_loss']:.3f} at step {row['at_step']:,}" if learned else ""
        peers = "; ".join(f"{speed(p)}: {p['peer']}" for p in row["peers"])
        table.append(f"| {nets[config, device]} | {machine} | {loss} | "
                     f"{speed(row)} | {peers} |")
    return "\n".join(table)


def fill(text, marker, content):
    begin, end = f"<!-- {marker}: begin -->", f"<!-- {marker}: end -->"
    head, rest = text.split(begin)
    tail = rest.split(end)[1]
    return f"{head}{begin}\n{content}\n{end}{tail}" if content else text


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--bin", default=root / "build/bin")
    p.add_argument("--check", action="store_true")
    a = p.parse_args()
    contents = {
        "README.md": {"nn sample": sample(a.bin), "quickstart output": run("quickstart"),
                      "transformer output": run("transformer"),
                      "mnist figures": figures(), "text figures": text_figures()},
        "ops/README.md": {"catalogue": catalogue.table(results)},
    }
    stale = False
    for name, sections in contents.items():
        before = after = (root / name).read_text()
        for marker, content in sections.items():
            after = fill(after, marker, content)
        stale = stale or before != after
        if not a.check:
            (root / name).write_text(after)
    return int(a.check and stale)


sys.exit(main())

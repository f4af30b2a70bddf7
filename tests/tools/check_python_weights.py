#!/usr/bin/env python3
"""Weights go to Python and back: a transformer written by Python's `safetensors` package computes
here what PyTorch computes in f64, learns along the same losses, and is read back by Python.

usage: check_python_weights.py transformer_probe train_transformer generate

Exits with 77 (skipped) where Python has no torch or no safetensors."""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

try:
    import torch
    import torch.nn.functional as F
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(77)

NETS = {
    "gpt": dict(vocabulary=31, context=24, layers=3, heads=4, width=32, positions="learned",
                feed_forward="gelu", norm="layer"),
    "llama": dict(vocabulary=31, context=24, layers=2, heads=2, width=36, positions="rotary",
                  feed_forward="swiglu", norm="rms"),
}


def shapes(net):
    c, v = net["width"], net["vocabulary"]
    swiglu = net["feed_forward"] == "swiglu"
    hidden = -(-8 * c // 24) * 8 if swiglu else 4 * c
    out = {"tok.weight": (v, c), "norm.weight": (c,)}
    if net["positions"] == "learned":
        out["pos.weight"] = (net["context"], c)
    for i in range(net["layers"]):
        block = {"norm1.weight": (c,), "attention.qkv.weight": (3 * c, c),
                 "attention.proj.weight": (c, c), "norm2.weight": (c,),
                 "feed_forward.up.weight": (hidden, c), "feed_forward.down.weight": (c, hidden)}
        if swiglu:
            block["feed_forward.gate.weight"] = (hidden, c)
        out.update({f"blocks.{i}.{name}": shape for name, shape in block.items()})
    return out


def random_weights(net, generator):
    weights = {}
    for name, shape in shapes(net).items():
        w = torch.randn(shape, generator=generator) * 0.2
        weights[name] = 1 + w if "norm" in name else w
    return weights


def rotated(x):
    """Halves of each head turned by the position, x [batch, heads, length, head_dim]."""
    half = x.shape[-1] // 2
    place = torch.arange(x.shape[-2], dtype=x.dtype)[:, None]
    angle = place * 10000.0 ** (-torch.arange(half, dtype=x.dtype) / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def logits(net, w, tokens):
    width, heads = net["width"], net["heads"]

    def norm(name, x):
        if net["norm"] == "rms":
            return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w[name]
        return F.layer_norm(x, (width,), w[name])

    def split(x):
        return x.view(*x.shape[:2], heads, width // heads).transpose(1, 2)

    x = w["tok.weight"][tokens]
    if net["positions"] == "learned":
        x = x + w["pos.weight"][: tokens.shape[1]]
    for i in range(net["layers"]):
        b = f"blocks.{i}."
        q, k, v = map(split, (norm(b + "norm1.weight", x) @ w[b + "attention.qkv.weight"].T)
                      .split(width, -1))
        if net["positions"] == "rotary":
            q, k = rotated(q), rotated(k)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        x = x + y.reshape(x.shape) @ w[b + "attention.proj.weight"].T
        h = norm(b + "norm2.weight", x)
        up = h @ w[b + "feed_forward.up.weight"].T
        if net["feed_forward"] == "swiglu":
            up = F.silu(h @ w[b + "feed_forward.gate.weight"].T) * up
        else:
            up = F.gelu(up, approximate="tanh")
        x = x + up @ w[b + "feed_forward.down.weight"].T
    return norm("norm.weight", x) @ w["tok.weight"].T


def losses(net, weights, x, y):
    w = {name: t.double().requires_grad_() for name, t in weights.items()}
    groups = [dict(params=[t for t in w.values() if t.dim() >= 2], weight_decay=0.1),
              dict(params=[t for t in w.values() if t.dim() < 2], weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))
    out = []
    for step in range(len(x)):
        scores = logits(net, w, x[step]).flatten(0, 1)
        loss = F.cross_entropy(scores, y[step].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(w.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        out.append(loss.item())
    return torch.tensor(out)


failed = []


def check(what, error, tolerance):
    good = error <= tolerance
    print(f"{'ok  ' if good else 'FAIL'} {what}: {error:.2e} (at most {tolerance:g})")
    if not good:
        failed.append(what)


def check_net(name, net, probe, folder):
    generator = torch.Generator().manual_seed(7)
    weights = random_weights(net, generator)
    data = torch.randint(net["vocabulary"], (50, 8, net["context"] + 1), generator=generator)
    data[:, :, 1::2] = (data[:, :, 0:-1:2] * 3 + 1) % net["vocabulary"]  # half can be learned
    x, y = data[:, :, :-1].contiguous(), data[:, :, 1:].contiguous()
    case = {"model." + key: w for key, w in weights.items()}
    save_file({**case, "x": x.int(), "y": y.int()}, folder / "case", {"model": json.dumps(net)})
    subprocess.run([probe, folder / "case", folder / "result"], check=True)
    result = load_file(folder / "result")
    double = {key: w.double() for key, w in weights.items()}
    worst = (result["logits"] - logits(net, double, x[0])).abs().max().item()
    check(f"{name}: logits of weights that Python wrote", worst, 1e-5)
    expected = losses(net, weights, x, y)
    worst = ((result["losses"] - expected) / expected).abs().max().item()
    check(f"{name}: losses of 50 steps, relative", worst, 1e-4)
    check(f"{name}: and it has learned, last loss to first",
          (expected[-1] / expected[0]).item(), 0.95)
    trained = {key.removeprefix("model."): w.double() for key, w in result.items()
               if key.startswith("model.")}
    worst = (result["trained_logits"] - logits(net, trained, x[0])).abs().max().item()
    check(f"{name}: logits of weights that Python read", worst, 1e-5)


def check_checkpoint(train, generate, folder):
    """What train_transformer wrote continues a text in PyTorch as it does in generate."""
    text = "".join(f"{i} ebbs and {i * i} flows\n" for i in range(200))
    (folder / "text").write_text(text)
    subprocess.run([train, "--task", "text", "--config", "tiny", "--text", folder / "text",
                    "--max-iters", "60", "--block-size", "32", "--device", "cpu", "--out", folder],
                   check=True, stdout=subprocess.DEVNULL)
    path = folder / "checkpoint.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    weights = {key.removeprefix("model."): w.double() for key, w in load_file(path).items()
               if key.startswith("model.")}
    characters = metadata["vocabulary"]
    tokens = [characters.index(c) for c in "1"]
    for _ in range(20):
        scores = logits(json.loads(metadata["model"]), weights, torch.tensor([tokens]))
        tokens.append(scores[0, -1].argmax().item())
    expected = "".join(characters[t] for t in tokens)
    told = subprocess.run([generate, "--checkpoint", path, "--prompt", "1", "--temperature", "0",
                           "--max-new-tokens", "20", "--device", "cpu"],
                          check=True, capture_output=True, text=True).stdout
    check("checkpoint: text told as in PyTorch", float(told != expected + "\n"), 0)


def main():
    probe, train, generate = sys.argv[1:]
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as name:
        for net_name, net in NETS.items():
            check_net(net_name, net, probe, Path(name))
        check_checkpoint(train, generate, Path(name))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

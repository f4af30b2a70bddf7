"""The table of ops/README.md: a row for each of the 28 kernels, figures from results/ops.jsonl.

Used by readme.py. A figure that was never measured is a dash. On a GPU what is bound by memory is
shown at a gigabyte and more (cases_large.jsonl): there a share of the bandwidth means something.
"""
import json, re, statistics

none = "–"

# day, kernel, formula, file, what backward keeps, op and shape measured on a GPU, shape on a CPU
square, image = [32768, 16384], [512, 64, 112, 112]
small, small_image = [2048, 2048], [8, 64, 56, 56]
days = [
    (1, "add, vectors", "a + b", "elementwise/arithmetic", "nothing", "add", square, small),
    (2, "swiglu", "silu(gate) · up", "elementwise/swiglu", "gate, up", "swiglu", square, small),
    (3, "rgb_to_grayscale", "w₀R + w₁G + w₂B", "image/rgb_to_grayscale", "nothing", "grayscale",
     [32, 3, 2048, 2048], [4, 3, 512, 512]),
    (4, "tanh", "(eˣ − e⁻ˣ) / (eˣ + e⁻ˣ)", "elementwise/tanh", "y", "tanh", square, small),
    (5, "flash_attention", "softmax(s · q kᵀ) v", "attention/flash_attention",
     "q, k, v, y, log Σ exp", "attention", [4, 16, 4096, 128], [1, 4, 1024, 64]),
    (6, "layer_norm", "(x − μ) / √(σ² + ε) · w + b", "normalization/layer_norm", "x, w, μ, 1/σ",
     "layer_norm", [65536, 8192], [1024, 4096]),
    (7, "add, broadcast", "a + b", "elementwise/broadcast", "nothing", "add_broadcast", square,
     [4096, 1024]),
    (8, "softmax", "exp(x − m) / Σ exp(x − m)", "reduction/softmax", "y", "softmax",
     [65536, 8192], small),
    (9, "conv2d", "Σ x[c, p+r, q+s] · w[k,c,r,s]", "convolution/conv2d", "x, w", "conv2d",
     [64, 64, 56, 56], [4, 64, 56, 56]),
    (10, "conv1d", "Σ x[c, p+r] · w[k,c,r]", "convolution/conv1d", "x, w", "conv1d",
     [32, 64, 16384], [4, 64, 4096]),
    (11, "max_pool1d", "max over r of x[p·s + r]", "pooling/max_pool1d", "the place, a byte",
     "max_pool1d", [128, 64, 65536], [8, 64, 8192]),
    (12, "max_pool2d", "max over r, t of x[p·s + r, q·s + t]", "pooling/max_pool2d",
     "the place, a byte", "max_pool2d", image, small_image),
    (13, "invert_colors", "max − x", "image/invert_colors", "nothing", "invert", square, small),
    (14, "batch_norm, rows", "(x − μ) / √(σ² + ε) · w + b", "normalization/batch_norm",
     "x, w, μ, 1/σ", "batch_norm", [131072, 2048], [4096, 1024]),
    (15, "rms_norm", "x / √(mean x² + ε) · w", "normalization/rms_norm", "x, w, 1/√mean",
     "rms_norm", [65536, 8192], [1024, 4096]),
    (16, "l2_norm, l2_normalize", "√Σ x², x / max(‖x‖, ε)", "normalization/l2_normalize",
     "x, y; y, 1/‖x‖", "l2_norm", [65536, 8192], small),
    (17, "inner_product", "Σ aᵢ bᵢ", "reduction/inner_product", "a, b", "inner", [536870912],
     [4194304]),
    (18, "outer_product", "a bᵀ", "linalg/outer_product", "a, b", "outer", square, small),
    (19, "dropout, autotuned", "x / (1 − p), or 0", "elementwise/dropout", "a seed: no mask",
     "dropout", square, small),
    (20, "sum over dim 1", "Σⱼ xᵢⱼ", "reduction/sum", "nothing", "sum_dim1", square, small),
    (21, "conv2d, few channels", "as day 9", "convolution/conv2d", "x, w", "conv2d",
     [128, 1, 28, 28], [64, 1, 28, 28]),
    (22, "avg_pool2d", "mean over the window of x", "pooling/avg_pool2d", "nothing", "avg_pool2d",
     image, small_image),
    (23, "batch_norm, images", "as day 14", "normalization/batch_norm", "x, w, μ, 1/σ",
     "batch_norm2d", [256, 64, 128, 128], small_image),
    (24, "layer_norm, few long rows", "as day 6", "normalization/layer_norm", "x, w, μ, 1/σ",
     "layer_norm", [1024, 524288], [16, 262144]),
    (25, "silu", "x / (1 + e⁻ˣ)", "elementwise/silu", "x", "silu", square, small),
    (26, "layer_norm, backward", "as day 6", "normalization/norm_rows", "x, w, μ, 1/σ",
     "layer_norm", [393216, 1024], [4096, 768]),
    (27, "gelu", "x · Φ(x), or its tanh form", "elementwise/gelu", "x", "gelu", square, small),
    (28, "mish", "x · tanh(ln(1 + eˣ))", "elementwise/mish", "x", "mish", square, small),
]
# the shapes that the journal was measured on: there a call's time is that of its launch
journal = [
    ("conv2d", [4, 8, 32, 32]), ("avg_pool2d", [2, 8, 64, 64]), ("avg_pool2d", [2, 16, 32, 32]),
    ("avg_pool2d", [4, 8, 64, 64]), ("avg_pool2d", [4, 16, 32, 32]),
    ("batch_norm2d", [4, 8, 64, 64]), ("batch_norm2d", [16, 16, 32, 32]),
    ("silu", [1024, 2048]), ("gelu", [1024, 2048]), ("outer", [4096, 4096])]

bound_by_products = ("matmul", "linear", "conv1d", "conv2d", "attention", "feed_forward",
                     "linear_cross_entropy")
views = ("add", "sum_dim1")  # their gradients are views in PyTorch, or in ebb too


figures = re.compile("date|machine|pytorch|commit|.*_(us|gbps|fwd|bwd|call)")


def key(device, case):
    """What was asked, without what was measured."""
    asked = {k: v for k, v in case.items() if k != "device" and not figures.fullmatch(k)}
    return device, json.dumps(asked, sort_keys=True)


def newest(path):
    """Of each case, the last row of each device."""
    rows = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        row = json.loads(line)
        if "error" not in row:
            rows[key(row["device"], row)] = row
    return rows


def find(rows, device, op, dtype, shape):
    """The only row of that op and shape, causal ones left out; None where there is none."""
    found = [r for r in rows.values() if not r.get("causal") and
             (r["device"], r["op"], r.get("dtype"), r.get("shape")) == (device, op, dtype, shape)]
    if len(found) > 1:
        raise SystemExit(f"catalogue.py: {len(found)} cases of {op} {dtype} {shape} on {device}; "
                         "expected one that differs in nothing else")
    return found[0] if found else None


def both(row, *keys, form="{:.2f}"):
    """Forward · backward, or a dash."""
    shown = [form.format(row[k]) if row and row.get(k) else none for k in keys]
    return none if shown == [none, none] else " · ".join(shown)


def against(row, side):
    """How often ours fits into PyTorch's time."""
    return both({way: row[f"{side}_{way}_us"] / row[f"{way}_us"] for way in ("fwd", "bwd")
                 if row.get(f"{side}_{way}_us") and row.get(f"{way}_us")} if row else None,
                "fwd", "bwd")


def table(results):
    rows = newest(results / "ops.jsonl")
    lines = ["| day | kernel | formula | backward keeps | GPU: GB/s | of a copy | bf16 | × eager "
             "| × compiled | CPU: × eager |",
             "| ---: | --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
    for day, kernel, formula, file, keeps, op, shape, cpu_shape in days:
        dtype = "bf16" if op == "attention" else "f32"
        gpu = find(rows, "cuda", op, dtype, shape)
        cpu = find(rows, "cpu", op, "f32", cpu_shape)
        half = find(rows, "cuda", op, "bf16", shape)
        lines.append(f"| {day} | [{kernel}]({file}.h) | {formula} | {keeps} "
                     f"| {both(gpu, 'gbps_fwd', 'gbps_bwd', form='{:,.0f}')} "
                     f"| {both(gpu, 'share_fwd', 'share_bwd')} "
                     f"| {both(half, 'share_fwd', 'share_bwd')} "
                     f"| {against(gpu, 'eager')} | {against(gpu, 'compiled')} "
                     f"| {against(cpu, 'eager')} |")
    machines = {}
    for row in rows.values():
        machines[row["device"]] = f"{row['machine']}, PyTorch {row['pytorch']}"
    copies = [row["copy_gbps"] for row in rows.values() if row["device"] == "cuda"]
    if copies:
        machines["cuda"] += f", copies at {min(copies):,.0f} to {max(copies):,.0f} GB/s"
    where = [f"{name}: {machines[key]}" for key, name in (("cuda", "GPU"), ("cpu", "CPU"))
             if key in machines]
    return "\n".join([*lines, "", ". ".join(where) + ".", "", *summary(results, rows)])


def summary(results, rows):
    """The geometric means of PyTorch's faster time over ours; the journal's own shapes."""
    lines = []
    for file, size in (("cases.jsonl", "of middle size"),
                       ("cases_large.jsonl", "of 1 GB and more")):
        cases = [json.loads(line) for line in open(results.parent / file)]
        found = [rows.get(key("cuda", c)) for c in cases
                 if c["op"] not in bound_by_products and (c["op"], c["shape"]) not in journal]
        fwd = [r["ratio_fwd"] for r in found if r and "ratio_fwd" in r]
        bwd = [r["ratio_bwd"] for r in found if r and "ratio_bwd" in r and r["op"] not in views]
        if fwd and bwd:
            mean = statistics.geometric_mean
            lines.append(
                f"- {len(fwd)} cases bound by memory, {size} ([{file}](../tests/tools/{file})): "
                f"the faster of PyTorch's two takes {mean(fwd):.2f} of our time forward, "
                f"{mean(bwd):.2f} backward, {mean(fwd + bwd):.2f} over both (geometric means; "
                "the GPU's own time, launching left out).")
    calls = [find(rows, "cuda", op, "f32", shape) for op, shape in journal]
    calls = [(r["call_fwd_us"], r["eager_call_us"]) for r in calls if r and "eager_call_us" in r]
    if calls:
        times = [ours for ours, _ in calls]
        lines.append(
            f"- {len(calls)} small shapes of the journal, where a launch is the most of it: a call "
            f"takes {min(times):.1f} to {max(times):.1f} µs, PyTorch's eager at least "
            f"{min(theirs / ours for ours, theirs in calls):.2f} times as long.")
    return lines

"""The table of ops/README.md: a row for each of the 28 kernels, with figures from results/ops.jsonl.

Used by readme.py. A figure that was never measured is a dash.
"""
import json

none = "–"

# day, kernel, formula, file, what backward keeps, op and shape measured on a GPU, shape on a CPU
square, image = [8192, 8192], [32, 64, 112, 112]
small, small_image = [2048, 2048], [8, 64, 56, 56]
days = [
    (1, "add, vectors", "a + b", "elementwise/arithmetic", "nothing", "add", square, small),
    (2, "swiglu", "silu(gate) · up", "elementwise/swiglu", "gate, up", "swiglu", square, small),
    (3, "rgb_to_grayscale", "w₀R + w₁G + w₂B", "image/rgb_to_grayscale", "nothing", "grayscale",
     [8, 3, 2048, 2048], [4, 3, 512, 512]),
    (4, "tanh", "(eˣ − e⁻ˣ) / (eˣ + e⁻ˣ)", "elementwise/tanh", "y", "tanh", square, small),
    (5, "flash_attention", "softmax(s · q kᵀ) v", "attention/flash_attention", "q, k, v, y, log Σ exp",
     "attention", [4, 16, 4096, 128], [1, 4, 1024, 64]),
    (6, "layer_norm", "(x − μ) / √(σ² + ε) · w + b", "normalization/layer_norm", "x, w, μ, 1/σ",
     "layer_norm", [8192, 4096], [1024, 4096]),
    (7, "add, broadcast", "a + b", "elementwise/broadcast", "nothing", "add_broadcast", square,
     [4096, 1024]),
    (8, "softmax", "exp(x − m) / Σ exp(x − m)", "reduction/softmax", "y", "softmax", [8192, 4096],
     small),
    (9, "conv2d", "Σ x[c, p+r, q+s] · w[k,c,r,s]", "convolution/conv2d", "x, w", "conv2d",
     [64, 64, 56, 56], [4, 64, 56, 56]),
    (10, "conv1d", "Σ x[c, p+r] · w[k,c,r]", "convolution/conv1d", "x, w", "conv1d",
     [32, 64, 16384], [4, 64, 4096]),
    (11, "max_pool1d", "max over r of x[p·s + r]", "pooling/max_pool1d", "the place, a byte",
     "max_pool1d", [32, 64, 65536], [8, 64, 8192]),
    (12, "max_pool2d", "max over r, t of x[p·s + r, q·s + t]", "pooling/max_pool2d",
     "the place, a byte", "max_pool2d", image, small_image),
    (13, "invert_colors", "max − x", "image/invert_colors", "nothing", "invert", square, small),
    (14, "batch_norm, rows", "(x − μ) / √(σ² + ε) · w + b", "normalization/batch_norm",
     "x, w, μ, 1/σ", "batch_norm", [8192, 1024], [4096, 1024]),
    (15, "rms_norm", "x / √(mean x² + ε) · w", "normalization/rms_norm", "x, w, 1/√mean",
     "rms_norm", [8192, 4096], [1024, 4096]),
    (16, "l2_norm, l2_normalize", "√Σ x², x / max(‖x‖, ε)", "normalization/l2_normalize",
     "x, y; y, 1/‖x‖", "l2_norm", [8192, 4096], small),
    (17, "inner_product", "Σ aᵢ bᵢ", "reduction/inner_product", "a, b", "inner", [67108864],
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
     "batch_norm2d", image, small_image),
    (24, "layer_norm, few long rows", "as day 6", "normalization/layer_norm", "x, w, μ, 1/σ",
     "layer_norm", [16, 1048576], [16, 262144]),
    (25, "silu", "x / (1 + e⁻ˣ)", "elementwise/silu", "x", "silu", square, small),
    (26, "layer_norm, many short rows", "as day 6", "normalization/norm_rows", "x, w, μ, 1/σ",
     "layer_norm", [32768, 768], [4096, 768]),
    (27, "gelu", "x · Φ(x), or its tanh form", "elementwise/gelu", "x", "gelu", square, small),
    (28, "mish", "x · tanh(ln(1 + eˣ))", "elementwise/mish", "x", "mish", square, small),
]


def newest(path):
    """Of each case, the last row of each device."""
    rows = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        row = json.loads(line)
        if "error" in row or row.get("causal"):
            continue
        rows[row["device"], row["op"], row.get("dtype"), tuple(row.get("shape", ()))] = row
    return rows


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
    lines = ["| day | kernel | formula | backward keeps | GPU: GB/s | of a copy | × eager | × compiled "
             "| CPU: × eager |", "| ---: | --- | --- | --- | --- | --- | --- | --- | --- |"]
    for day, kernel, formula, file, keeps, op, shape, cpu_shape in days:
        dtype = "bf16" if op == "attention" else "f32"
        gpu = rows.get(("cuda", op, dtype, tuple(shape)))
        cpu = rows.get(("cpu", op, "f32", tuple(cpu_shape)))
        lines.append(f"| {day} | [{kernel}]({file}.h) | {formula} | {keeps} "
                     f"| {both(gpu, 'gbps_fwd', 'gbps_bwd', form='{:,.0f}')} "
                     f"| {both(gpu, 'share_fwd', 'share_bwd')} | {against(gpu, 'eager')} "
                     f"| {against(gpu, 'compiled')} | {against(cpu, 'eager')} |")
    machines = {}
    for row in rows.values():
        machines[row["device"]] = f"{row['machine']}, PyTorch {row['pytorch']}"
        if row["device"] == "cuda":
            machines["cuda"] += f", a copy at {row['copy_gbps']:,.0f} GB/s"
    where = [f"{name}: {machines[key]}" for key, name in (("cuda", "GPU"), ("cpu", "CPU"))
             if key in machines]
    return "\n".join(lines + [""] + [". ".join(where) + "."] if where else lines)

"""PyTorch's side of bench_ops.py: what the cases of opbench mean there."""
import math

import torch
import torch.nn.functional as F

dtypes = {"f32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "f64": torch.float64}


def build(c, device):
    """What the case means: a function, and the tensors it is differentiated by."""
    op, s = c["op"], c.get("shape")
    dt = dtypes[c.get("dtype", "f32")]

    def get(name, default=None):  # c.get, but torch.compile sees through this one
        return c[name] if name in c else default

    def x(*shape, dtype=dt):
        t = torch.rand(*shape, device=device) * 2 - 1
        return (math.sqrt(3) * t).to(dtype).requires_grad_()

    def positive(*shape):
        return (torch.rand(*shape, device=device) * 1.5 + 0.5).to(dt).requires_grad_()

    unary = {
        "neg": torch.neg, "exp": torch.exp, "tanh": torch.tanh, "sigmoid": torch.sigmoid,
        "relu": torch.relu, "silu": F.silu, "mish": F.mish, "invert": lambda t: 1.0 - t,
        "invert_colors": lambda t: 1.0 - t, "sum_dim1": lambda t: t.sum(1),
        "gelu": lambda t: F.gelu(t, approximate=get("approximate", "tanh")),
        "dropout": lambda t: F.dropout(t, get("p", 0.5), get("training", True)),
        "softmax": lambda t: torch.softmax(t, get("dim", -1)),
        "log_softmax": lambda t: torch.log_softmax(t, get("dim", -1)),
        "l2_normalize": lambda t: F.normalize(t, dim=get("dim", -1), eps=get("eps", 1e-12)),
        "transpose": lambda t: t.transpose(get("dim0", -2), get("dim1", -1)).contiguous(),
        "permute": lambda t: t.permute(get("dims")).contiguous(),
        "reshape": lambda t: t.reshape(-1), "mean": lambda t: t.mean(get("dim")),
        "sum": lambda t: t.sum(get("dim")) if get("dim") is not None else t.sum(),
        "max": lambda t: t.max() if get("dim") is None else t.amax(get("dim")),
        "slice": lambda t: t.narrow(get("dim", 0), get("start", 0),
                                    get("end") - get("start", 0)).clone(),
    }
    kernel = get("kernel", get("kernel_size"))
    pool = (kernel, get("stride", kernel), get("padding", 0))
    more = {"dilation": get("dilation", 1), "ceil_mode": get("ceil_mode", False)}
    unary["max_pool1d"] = lambda t: F.max_pool1d(t, *pool, **more)
    unary["max_pool2d"] = lambda t: F.max_pool2d(t, *pool, **more)
    unary["avg_pool2d"] = lambda t: F.avg_pool2d(
        t, *pool, more["ceil_mode"], get("count_include_pad", True))
    if op == "l2_norm":
        if "dim" in c or "keepdim" in c:
            return lambda t: torch.linalg.vector_norm(t, dim=get("dim")), [x(*s)]
        return unary["l2_normalize"], [x(*s)]
    if op in unary:
        return unary[op], [x(*s)]
    if op in ("log", "sqrt"):
        return getattr(torch, op), [positive(*s)]
    if op in ("grayscale", "rgb_to_grayscale"):
        return (lambda t: (0.299 * t[..., 0, :, :] + 0.587 * t[..., 1, :, :]
                           + 0.114 * t[..., 2, :, :]).unsqueeze(-3)), [x(*s)]
    binary = {"add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div,
              "inner": torch.dot, "inner_product": torch.dot}
    if op in binary:
        return binary[op], [x(*get("a", s)), positive(*get("b", s))]
    if op == "add_broadcast":
        return torch.add, [x(*s), x(s[-1])]
    if op == "swiglu":
        return (lambda gate, up: F.silu(gate) * up), [x(*s), x(*s)]
    if op in ("outer", "outer_product"):
        return torch.outer, [x(s[0]), x(s[-1])]
    if op == "matmul":
        batch = (s or [])[:-3]
        of_a = get("a") or [*batch, s[-3], s[-2]]
        return torch.matmul, [x(*of_a), x(*(get("b") or [*batch, s[-2], s[-1]]))]
    if op == "concat":
        return (lambda p, q: torch.cat((p, q), get("dim", 0))), [x(*s), x(*s)]
    w = get("weight")
    if op == "linear":
        return F.linear, [x(*s), x(*w), x(w[0])]
    if op == "feed_forward":
        up, down = get("up"), [get("out", get("up")[1]), get("up")[0]]
        gelu = lambda t: F.gelu(t, approximate="tanh")
        f = lambda t, p, a, q, b, r: F.linear(gelu(F.linear(t, p, a)), q, b) + r
        return f, [x(*s), x(*up), x(up[0]), x(*down), x(down[0]), x(*s[:-1], down[0])]
    if op == "linear_cross_entropy":
        t = torch.randint(0, w[0], (s[0],), device=device)
        loss = lambda h, k: F.cross_entropy(F.linear(h, k), t, reduction=get("reduction", "mean"))
        return loss, [x(*s), x(*w)]
    if op == "rotary":  # [batch, length, heads, head_dim]
        half = s[-1] // 2
        angles = torch.outer(torch.arange(s[1], device=device), get("base", 1e4) ** (
            -torch.arange(half, device=device) / half))
        cos, sin = (f(angles).repeat(1, 2)[:, None].to(dt) for f in (torch.cos, torch.sin))
        turned = lambda v: torch.cat((-v[..., half:], v[..., :half]), -1)
        return (lambda v: v * cos + turned(v) * sin), [x(*s)]
    if op in ("conv1d", "conv2d"):
        conv = getattr(F, op)
        options = [get("stride", 1), get("padding", 0), get("dilation", 1), get("groups", 1)]
        return (lambda t, k, b: conv(t, k, b, *options)), [x(*s), x(*w), x(w[0])]
    rows = get("normalized_shape") or s[-1:]
    if op == "layer_norm":
        norm = lambda t, k, b: F.layer_norm(t, rows, k, b, get("eps", 1e-5))
        return norm, [x(*s), x(*rows), x(*rows)]
    if op == "rms_norm":
        return (lambda t, k: F.rms_norm(t, rows, k, get("eps", 1e-6))), [x(*s), x(*rows)]
    if op in ("batch_norm", "batch_norm2d"):
        n = s[1]
        mean, var = torch.zeros(n, device=device), torch.ones(n, device=device)
        training = get("training", True)
        f = lambda t, k, b: F.batch_norm(t, mean, var, k, b, training, get("momentum", 0.1))
        return f, [x(*s), x(n, dtype=torch.float32), x(n, dtype=torch.float32)]
    if op == "cross_entropy":
        t = torch.randint(0, s[-1], (s[0],), device=device)
        return (lambda l: F.cross_entropy(l, t, reduction=get("reduction", "mean"))), [x(*s)]
    if op == "mse_loss":
        return F.mse_loss, [x(*s), x(*s)]
    if op == "embedding":
        i = torch.randint(0, w[0], tuple(s), device=device)
        return (lambda k: F.embedding(i, k)), [x(*w)]
    if op == "attention":  # [batch, heads, length, head_dim]
        causal = get("causal", False)
        return (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=causal)), [
            x(*s), x(*s), x(*s)]
    if op == "flash_attention":  # [batch, length, heads, head_dim]
        causal = get("is_causal", False)
        kv, p, swap = get("kv", s), get("dropout", 0.0), lambda t: t.transpose(1, 2)
        return (lambda q, k, v: swap(F.scaled_dot_product_attention(
            swap(q), swap(k), swap(v), None, p, causal))), [x(*s), x(*kv), x(*kv)]
    raise ValueError(f"no such op {op}")

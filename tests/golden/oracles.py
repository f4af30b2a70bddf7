"""What PyTorch says about each op, in f64: value, gradients, and how exactly f32 can follow.

Where PyTorch has no such op, the formula in f64. Every tensor of a case has a class:

  A  moves elements            the same number
  B  one rounding              a unit in the last place, two for gradients
  C  a function of an element  an absolute and a relative error
  D  a function of a row       relative to the row's largest, times how badly conditioned it is
  E  a sum of products         relative to the sum of the absolute values of its terms

The errors of D and E are relative to a magnitude, a tensor beside the expected one.
"""

from dataclasses import dataclass, field
from typing import Callable

import torch
import torch.nn.functional as F


@dataclass
class Oracle:
    """f(inputs, attrs) -> y. `grads` classifies each input's gradient, "*" those not named."""

    f: Callable
    out: str
    grads: dict = field(default_factory=dict)
    magnitude: Callable = None  # (oracle, inputs, attrs, gout) -> {tensor's name: magnitude}
    fixed: tuple = ()  # floating inputs without a gradient
    condition: Callable = lambda t, a: 1.0


def differentiate(f, inputs, attrs, gout, fixed=()):
    """y and the gradient of each floating input, for the cotangent gout."""
    leaves = {
        name: x.clone().requires_grad_(x.is_floating_point() and name not in fixed)
        for name, x in inputs.items()
    }
    y = f(leaves, attrs)
    wanted = {name: x for name, x in leaves.items() if x.requires_grad}
    if not (wanted and y.requires_grad):
        return y.detach(), {}
    grads = torch.autograd.grad(y, list(wanted.values()), gout, allow_unused=True)
    return y.detach(), {n: torch.zeros_like(x) if g is None else g
                        for (n, x), g in zip(wanted.items(), grads)}


def answers(oracle, inputs, attrs, gout):
    y, grads = differentiate(oracle.f, inputs, attrs, gout, oracle.fixed)
    return {"out.0": y, **{f"grad.{name}": g for name, g in grads.items()}}


def absolute_sums(oracle, inputs, attrs, gout):
    """Of an op that is linear in each input: the op on absolute values."""
    positive = {n: x.abs() if x.is_floating_point() else x for n, x in inputs.items()}
    return {n: x.abs() for n, x in answers(oracle, positive, attrs, gout.abs()).items()}


def absolute_gradient(oracle, inputs, attrs, gout):
    return {n: x.abs() for n, x in answers(oracle, inputs, attrs, gout.abs()).items()}


def largest(oracle, inputs, attrs, gout):
    """Of well-conditioned rows: the largest answer."""
    return {n: x.abs().max().reshape(1) if x.numel() else x.new_zeros(1)
            for n, x in answers(oracle, inputs, attrs, gout).items()}


def spread(x, dims, eps):
    """How much of each row the subtraction of its mean cancels: max |x| / sigma, at least 1."""
    if not x.numel():
        return x.new_ones(1)
    sigma = (x.var(dims, correction=0, keepdim=True) + eps).sqrt()
    return (x.abs().amax(dims, keepdim=True) / sigma).clamp_min(1)


def normalized(factor):
    """Magnitudes of a norm; factor(x, attrs) is the spread of each row, to be broadcast to x."""

    def magnitude(oracle, inputs, attrs, gout):
        by = factor(inputs["x"], attrs)
        most = largest(oracle, inputs, attrs, gout)
        plain = {n: t for n, t in inputs.items() if n not in ("weight", "bias")}
        terms = gout.abs() * oracle.f(plain, attrs).abs() * by
        whole = by.expand(gout.shape)
        return {"out.0": whole * most["out.0"], "grad.x": whole * most["grad.x"],
                "grad.weight": over_rows(terms, attrs), "grad.bias": over_rows(gout.abs(), attrs)}

    return magnitude


def over_rows(x, attrs):
    """The sum that a weight's gradient is."""
    if "normalized_shape" in attrs:
        dims = list(range(x.dim() - len(attrs["normalized_shape"])))
    else:
        dims = [d for d in range(x.dim()) if d != 1]
    return x.sum(dims) if dims else x


def of_trailing(x, attrs):
    return spread(x, list(range(-len(attrs["normalized_shape"]), 0)), attrs.get("eps", 1e-5))


def of_channels(x, attrs):
    if not attrs.get("training"):  # nothing is subtracted but a given number
        return of_nothing(x, attrs)
    return spread(x, [d for d in range(x.dim()) if d != 1], attrs.get("eps", 1e-5))


def of_nothing(x, attrs):
    return x.new_ones(1)


def condition(factor):
    return lambda t, a: factor(t["x"], a).max().item() if t["x"].numel() else 1.0


def attention(t, a):
    q, k, v = (t[n].transpose(1, 2) for n in "qkv")
    y = F.scaled_dot_product_attention(q, k, v, is_causal=a.get("is_causal", False),
                                       scale=a.get("scale"))
    return y.transpose(1, 2)


def attention_magnitude(oracle, inputs, attrs, gout):
    """Errors of the scores, one rounding of each term, carried to first order through softmax."""
    q, k, v = (inputs[n].transpose(1, 2) for n in "qkv")
    do = gout.transpose(1, 2)
    scale = attrs.get("scale") or q.shape[-1] ** -0.5
    scores = scale * q @ k.mT
    if attrs.get("is_causal"):
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(hidden, -torch.inf)
    p = scores.softmax(-1)
    of_scores = scale * q.abs() @ k.abs().mT
    e = p * (1 + of_scores + (p * of_scores).sum(-1, keepdim=True))
    dp = do.abs() @ v.abs().mT
    ds = scale * e * (dp + (p * dp).sum(-1, keepdim=True))
    magnitudes = {"out.0": e @ v.abs(), "grad.q": ds @ k.abs(), "grad.k": ds.mT @ q.abs(),
                  "grad.v": e.mT @ do.abs()}
    return {n: m.transpose(1, 2) for n, m in magnitudes.items()}


def rotary_pairs(t, a):
    """x as [batch, length, turned heads, 2, head_dim / 2], what stays as it is, and the angles."""
    x = t["x"]
    turned, kept = (x, None) if x.dim() == 4 else (x[:, :, :2], x[:, :, 2:])
    half = x.shape[-1] // 2
    place = a.get("first", 0) + torch.arange(x.shape[1], dtype=torch.float64)
    rates = a.get("base", 1e4) ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = (place[:, None] * rates).reshape(-1, *[1] * (x.dim() - 3), half)
    return turned.unflatten(-1, (2, half)), kept, angles


def rotary(t, a):
    pairs, kept, angles = rotary_pairs(t, a)
    turned = torch.complex(*pairs.unbind(-2)) * torch.polar(torch.ones_like(angles), angles)
    y = torch.cat((turned.real, turned.imag), -1)
    return y if kept is None else torch.cat((y, kept), 2)


def rotary_magnitude(oracle, inputs, attrs, gout):
    """Two products an element, of each other's signs."""

    def of(x):
        pairs, kept, _ = rotary_pairs({"x": x.abs()}, attrs)
        both = pairs.sum(-2, keepdim=True).expand_as(pairs).flatten(-2)
        return both if kept is None else torch.cat((both, kept), 2)

    return {"out.0": of(inputs["x"]), "grad.x": of(gout)}


def feed_forward(t, a):
    h = F.linear(t["x"], t["up"], t.get("up_bias"))
    y = F.linear(gelu({"x": h}, {}), t["down"], t.get("down_bias"))
    return y + t.get("residual", 0)


def feed_forward_magnitude(oracle, inputs, attrs, gout):
    """Errors of the first sums, carried through gelu and its derivative to first order."""
    x, up, down = (inputs[n].abs() for n in ("x", "up", "down"))
    h = F.linear(inputs["x"], inputs["up"], inputs.get("up_bias")).requires_grad_()
    g = gelu({"x": h}, {})
    slope, = torch.autograd.grad(g.sum(), h, create_graph=True)
    bend, = torch.autograd.grad(slope.sum(), h)
    of_h = F.linear(x, up) + inputs.get("up_bias", h.new_zeros(1)).abs()
    of_g = (g.abs() + slope.abs() * of_h).detach()
    of_y = F.linear(of_g, down) + sum(inputs[n].abs() for n in ("down_bias", "residual")
                                      if n in inputs)
    dy = gout.abs()
    dh = (dy @ down) * (slope.abs() + bend.abs() * of_h).detach()
    rows = lambda m: m.flatten(0, -2)
    return {"out.0": of_y, "grad.x": dh @ up, "grad.up": rows(dh).T @ rows(x),
            "grad.down": rows(dy).T @ rows(of_g), "grad.up_bias": rows(dh).sum(0),
            "grad.down_bias": rows(dy).sum(0)}


def linear_cross_entropy(t, a):
    a = {n: v for n, v in a.items() if n != "logits_at_a_time"}
    return F.cross_entropy(F.linear(t["x"], t["weight"]), t["target"].long(), **a)


def linear_cross_entropy_magnitude(oracle, inputs, attrs, gout):
    """Errors of the logits, carried to first order through softmax, and those of its terms."""
    x, w, t = inputs["x"], inputs["weight"], inputs["target"].long()
    kept = t != attrs.get("ignore_index", -100)
    t = torch.where(kept, t, 0)
    logits, of_logits = x @ w.T, x.abs() @ w.abs().T
    p = logits.softmax(1)
    of_mean = (p * of_logits).sum(1, keepdim=True)
    terms = kept[:, None] * (p * (1 + of_logits + of_mean) + F.one_hot(t, len(w)))
    losses = F.cross_entropy(logits, t, reduction="none")
    losses = kept * (losses + of_logits.gather(1, t[:, None])[:, 0] + of_mean[:, 0])
    by = 1 / kept.sum() if attrs.get("reduction", "mean") == "mean" else 1
    dl = gout.abs() * by * terms
    return {"out.0": losses.sum() * by, "grad.x": dl @ w.abs(), "grad.weight": dl.T @ x.abs()}


def cross_entropy(t, a):
    return F.cross_entropy(t["logits"], t["target"].long(), t.get("weight"), **a)


def cross_entropy_magnitude(oracle, inputs, attrs, gout):
    """A loss is a sum of positive terms; a gradient has the terms p and q, of unlike sign."""
    x, t = inputs["logits"], inputs["target"].long()
    w = inputs.get("weight", torch.ones_like(x[0] if len(x) else x.new_ones(x.shape[1])))
    kept = t != attrs.get("ignore_index", -100)
    smooth = attrs.get("label_smoothing", 0.0)
    of_target = torch.where(kept, w[torch.where(kept, t, 0)], 0)
    one = F.one_hot(torch.where(kept, t, 0), x.shape[1])
    p = x.softmax(1)
    terms = (1 - smooth) * of_target[:, None] * (p + one)
    terms = terms + smooth / x.shape[1] * kept[:, None] * (p * w.sum() + w)
    mean = attrs.get("reduction", "mean") == "mean"
    g = (gout.abs() / (of_target.sum() if mean else 1)).expand(len(x))
    return {"grad.logits": g[:, None] * terms}


def reduced(f):
    """PyTorch's reductions want no dim rather than null."""

    def call(t, a):
        dim = a.get("dim")
        dim = tuple(range(t["x"].dim())) if dim is None else dim
        return f(t["x"], dim, a.get("keepdim", False))

    return call


def grayscale(t, a):
    weights = torch.tensor(a.get("weights", [0.299, 0.587, 0.114]), dtype=torch.float64)
    y = (t["x"].double() * weights.reshape(3, 1, 1)).sum(-3, keepdim=True)
    return y if t["x"].is_floating_point() else y.round().clamp(0, 255)


def gelu(t, a):
    """F.gelu forms 1 + tanh or 1 + erf, whose digits vanish in the tail; these forms keep them."""
    x, kind = t["x"], a.get("approximate", "tanh")
    if kind == "tanh":
        y = x * torch.sigmoid(2 * (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))
    else:
        y = x * torch.special.erfc(-x * 0.5**0.5) / 2
    torch.testing.assert_close(y, F.gelu(x, approximate=kind), rtol=1e-14, atol=1e-14)
    return y


def invert(t, a):
    x = t["x"]
    most = a.get("max", 1.0 if x.is_floating_point() else 255)
    return most - x if x.is_floating_point() else (most - x.double()).clamp_min(0)


def batch_norm(t, a):
    return F.batch_norm(t["x"], t["running_mean"].detach().clone(),
                        t["running_var"].detach().clone(), t.get("weight"), t.get("bias"), **a)


def pooling(f):
    return lambda t, a: f(t["x"], **a)


def convolution(f):
    return lambda t, a: f(t["x"], t["weight"], t.get("bias"), **a)


def unary(f, kind="C", grad=None):
    return Oracle(lambda t, a: f(t["x"]), kind, {"x": grad or kind})


def binary(f):
    """One rounding of each element; the gradient of what was broadcast is a sum."""
    return Oracle(lambda t, a: f(t["a"], t["b"]), "B", {"*": "broadcast"}, absolute_sums)


def linear(f, **more):
    return Oracle(f, "E", {"*": "E"}, absolute_sums, **more)


def moved(f):
    return Oracle(f, "A", {"*": "A"})


def row(f):
    return Oracle(f, "D", {"x": "D"}, largest)


ORACLES = {
    "add": binary(torch.add),
    "sub": binary(torch.sub),
    "mul": binary(torch.mul),
    "div": binary(torch.div),
    "neg": unary(torch.neg, "A"),
    "exp": unary(torch.exp),
    "log": unary(torch.log),
    "sqrt": unary(torch.sqrt, "B", "C"),
    "tanh": unary(torch.tanh),
    "sigmoid": unary(torch.sigmoid),
    "relu": unary(F.relu, "A"),
    "silu": unary(F.silu),
    "mish": unary(F.mish),
    "gelu": Oracle(gelu, "C", {"x": "C"}),
    "swiglu": Oracle(lambda t, a: F.silu(t["gate"]) * t["up"], "C", {"*": "C"}),
    "rgb_to_grayscale": linear(grayscale),
    "invert_colors": Oracle(invert, "B", {"x": "A"}),
    "softmax": row(lambda t, a: F.softmax(t["x"], a.get("dim", -1))),
    "log_softmax": row(lambda t, a: F.log_softmax(t["x"], a.get("dim", -1))),
    "cross_entropy": Oracle(cross_entropy, "E", {"logits": "E"}, cross_entropy_magnitude,
                            fixed=("weight",)),
    "linear_cross_entropy": Oracle(linear_cross_entropy, "E", {"*": "E"},
                                   linear_cross_entropy_magnitude),
    "mse_loss": Oracle(lambda t, a: F.mse_loss(t["x"], t["target"], **a), "E", {"*": "E"}),
    "sum": linear(reduced(torch.sum)),
    "mean": linear(reduced(torch.mean)),
    "max": Oracle(reduced(torch.amax), "A", {"x": "A"}),
    "l2_norm": Oracle(reduced(lambda x, d, k: torch.linalg.vector_norm(x, 2, d, k)), "E",
                      {"x": "E"}),
    "l2_normalize": row(lambda t, a: F.normalize(t["x"], 2, a.get("dim", 1),
                                                 a.get("eps", 1e-12))),
    "inner_product": linear(lambda t, a: torch.dot(t["a"], t["b"])),
    "outer_product": Oracle(lambda t, a: torch.outer(t["a"], t["b"]), "B", {"*": "E"},
                            absolute_sums),
    "matmul": linear(lambda t, a: torch.matmul(t["a"], t["b"])),
    "linear": linear(lambda t, a: F.linear(t["x"], t["weight"], t.get("bias"))),
    "feed_forward": Oracle(feed_forward, "E", {"residual": "A", "*": "E"}, feed_forward_magnitude),
    "layer_norm": Oracle(
        lambda t, a: F.layer_norm(t["x"], a["normalized_shape"], t.get("weight"), t.get("bias"),
                                  a.get("eps", 1e-5)),
        "D", {"x": "D", "*": "E"}, normalized(of_trailing), condition=condition(of_trailing)),
    "rms_norm": Oracle(
        lambda t, a: F.rms_norm(t["x"], a["normalized_shape"], t.get("weight"),
                                a.get("eps", 1e-6)),
        "D", {"x": "D", "*": "E"}, normalized(of_nothing)),
    "batch_norm": Oracle(batch_norm, "D", {"x": "D", "*": "E"}, normalized(of_channels),
                         fixed=("running_mean", "running_var"), condition=condition(of_channels)),
    "conv1d": linear(convolution(F.conv1d)),
    "conv2d": linear(convolution(F.conv2d)),
    "max_pool1d": Oracle(pooling(F.max_pool1d), "A", {"x": "E"}, absolute_gradient),
    "max_pool2d": Oracle(pooling(F.max_pool2d), "A", {"x": "E"}, absolute_gradient),
    "avg_pool2d": linear(pooling(F.avg_pool2d)),
    "flash_attention": Oracle(attention, "E", {"*": "E"}, attention_magnitude),
    "rotary": Oracle(rotary, "E", {"*": "E"}, rotary_magnitude),
    "embedding": Oracle(lambda t, a: F.embedding(t["indices"].long(), t["weight"]), "A",
                        {"weight": "E"}, absolute_sums),
    "reshape": moved(lambda t, a: t["x"].reshape(a["shape"])),
    "flatten": moved(lambda t, a: t["x"].flatten(a.get("start_dim", 0))),
    "permute": moved(lambda t, a: t["x"].permute(a["dims"])),
    "transpose": moved(lambda t, a: t["x"].transpose(a["dim0"], a["dim1"])),
    "concat": moved(lambda t, a: torch.cat(list(t.values()), a.get("dim", 0))),
    "slice": moved(lambda t, a: t["x"].movedim(a.get("dim", 0), 0)[a.get("start", 0):a.get("end")]
                   .movedim(0, a.get("dim", 0))),
}

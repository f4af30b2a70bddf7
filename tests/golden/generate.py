#!/usr/bin/env python3
"""Writes the golden cases: what PyTorch, in f64 on the CPU, says that each op gives.

    python3 tests/golden/generate.py [FOLDER]        default: cases/ beside this file

A case is a file that tests/tools/opcase reads (in.*, gout.0, metadata op and attrs), with what must
come out beside it: out.0 and grad.* in F64, the class of each (oracles.py) in metadata `classes`,
and for classes D and E the magnitude that the error is relative to, mag.*. Inputs are f32 numbers,
so that every element type is held against the truth about the same inputs. The seed of a case is
its name: adding one changes no other, and the same PyTorch writes the same bytes again. Dropout has
no peer to ask: tests/ops/dropout.cpp.
"""

import itertools
import json
import pathlib
import struct
import sys
import zlib

import torch

from oracles import ORACLES, answers

DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.int64: "I64", torch.uint8: "U8"}
CASES = []


def case(op, attrs=None, **inputs):
    """Inputs are functions of a generator; gout is standard normal unless it is given too."""
    CASES.append((op, attrs or {}, inputs))


# --- numbers ------------------------------------------------------------------------------------


def f32(x):
    return x.to(torch.float32).to(torch.float64)


def normal(*shape, scale=1.0, offset=0.0):
    return lambda g: f32(offset + scale * torch.randn(shape, generator=g, dtype=torch.float64))


def positive(*shape, low=0.1, high=4.0):
    return lambda g: f32(low + (high - low) * torch.rand(shape, generator=g, dtype=torch.float64))


def away_from_zero(*shape, low=0.25):
    def make(g):
        x = torch.randn(shape, generator=g, dtype=torch.float64)
        return f32(torch.where(x < 0, x - low, x + low))

    return make


def distinct(*shape, step=1 / 16):
    """A maximum among them is one, by far, and bf16 tells all of up to 256 apart."""
    n = torch.Size(shape).numel()
    return lambda g: f32((torch.randperm(n, generator=g) - n // 2).double() * step).reshape(shape)


def values(*numbers):
    return lambda g: f32(torch.tensor(numbers, dtype=torch.float64))


def filled(value, *shape):
    return lambda g: f32(torch.full(shape, value, dtype=torch.float64))


def integers(high, *shape):
    return lambda g: torch.randint(0, high, shape, generator=g)


def pixels(*shape):
    return lambda g: torch.randint(0, 256, shape, generator=g).to(torch.uint8)


def some_ignored(high, n, ignored):
    def make(g):
        t = torch.randint(0, high, (n,), generator=g)
        t[::3] = ignored
        return t

    return make


# --- cases --------------------------------------------------------------------------------------

SHAPES = [(), (1,), (0,), (257,), (13, 17), (3, 0, 5), (2, 3, 5, 7)]
BROADCASTS = [((), (5,)), ((3, 1, 5), (4, 1)), ((2, 3, 4, 5), (4, 1)), ((1, 7), (5, 1)),
              ((6, 31), (31,)), ((1,), (13,)), ((0, 3), (1, 3)), ((2, 1, 1), (2, 9, 11))]
FAR = (-1e4, -1e3, -120.0, -90.0, -88.0, -30.0, -10.0, -1.0, -1e-3, -1e-30, 0.0, 1e-30, 1e-3, 1.0,
       10.0, 30.0, 88.0, 90.0, 120.0, 1e3, 1e4)


def elementwise():
    for op in ("add", "sub", "mul", "div"):
        second = away_from_zero if op == "div" else normal
        for shape in SHAPES:
            case(op, a=normal(*shape, scale=3), b=second(*shape))
        for a, b in BROADCASTS:
            case(op, a=normal(*a), b=second(*b))
    for op in ("neg", "tanh", "sigmoid", "relu", "silu", "mish"):
        for shape in SHAPES:
            x = normal(*shape, scale=4 if shape not in [(), (1,)] else 1)
            case(op, x=away_from_zero(*shape) if op == "relu" else x)
        case(op, x=normal(1031, scale=30))
        case(op, x=values(*(v for v in FAR if op != "relu" or v)))
    for approximate in ("tanh", "none"):
        for shape in SHAPES:
            case("gelu", {"approximate": approximate}, x=normal(*shape, scale=2))
        case("gelu", {"approximate": approximate}, x=values(*FAR))
        case("gelu", {"approximate": approximate}, x=normal(509, scale=8))
    case("gelu", x=normal(7, 11))
    for shape in SHAPES:
        case("exp", x=normal(*shape, scale=4))
        case("log", x=positive(*shape))
        case("sqrt", x=positive(*shape, low=0.25, high=100))
    case("exp", x=values(-100.0, -87.0, -1e-3, 0.0, 1e-3, 20.0, 80.0))
    case("log", x=values(1e-30, 0.5, 0.999, 1.0, 1.001, 2.0, 1e30))
    case("sqrt", x=values(1e-30, 1e-6, 0.5, 1.0, 2.0, 1e6, 1e30))
    for shape in [(1,), (0, 4), (5, 7), (2, 3, 129), (1021,)]:
        case("swiglu", gate=normal(*shape, scale=3), up=normal(*shape))
    case("swiglu", gate=values(*FAR), up=normal(len(FAR)))


def images():
    for shape in [(2, 3, 5, 7), (3, 4, 6), (1, 3, 1, 1), (0, 3, 4, 4), (2, 3, 31, 29)]:
        case("rgb_to_grayscale", x=positive(*shape, low=0, high=1))
    case("rgb_to_grayscale", {"weights": [0.2126, 0.7152, 0.0722]}, x=normal(3, 3, 9, 4))
    case("rgb_to_grayscale", {"weights": [0.0, 1.0, 0.0]}, x=normal(3, 17, 3))
    case("rgb_to_grayscale", x=pixels(2, 3, 13, 11))
    for shape in [(3, 17, 5), (2, 3, 5, 19), (1,), (0, 3), (1009,)]:
        case("invert_colors", x=positive(*shape, low=0, high=1))
    case("invert_colors", {"max": 255.0}, x=positive(3, 5, 7, low=0, high=255))
    case("invert_colors", x=pixels(3, 29, 5))
    case("invert_colors", {"max": 200}, x=pixels(2, 3, 7, 3))


def softmaxes():
    for op in ("softmax", "log_softmax"):
        for shape, dim in [((5, 7), 1), ((5, 7), 0), ((3, 4, 5), 1), ((3, 4, 5), -1),
                           ((13,), 0), ((9, 1), 1), ((1, 9), 0), ((0, 3), 1), ((2, 3, 5, 7), -3),
                           ((1823, 3), 1), ((3, 1021), -1), ((65, 33), 0)]:
            case(op, {"dim": dim}, x=normal(*shape, scale=2))
        case(op, x=normal(4, 6))
        case(op, {"dim": -1}, x=normal(7, 31, offset=1000))
        case(op, {"dim": 0}, x=normal(31, 7, offset=-1000))
        case(op, {"dim": 1}, x=normal(2, 4099, scale=0.5))
        case(op, {"dim": -1}, x=normal(6, 11, scale=5))


def losses():
    for reduction, smoothing, weighted, ignored in itertools.product(
            ("none", "mean", "sum"), (0.0, 0.1), (False, True), (False, True)):
        attrs = {"reduction": reduction, "label_smoothing": smoothing}
        weight = {"weight": positive(7)} if weighted else {}
        if ignored:
            attrs["ignore_index"] = -1 if weighted else 3
        target = some_ignored(7, 13, attrs["ignore_index"]) if ignored else integers(7, 13)
        case("cross_entropy", attrs, logits=normal(13, 7, scale=3), target=target, **weight)
    case("cross_entropy", logits=normal(1, 1), target=integers(1, 1))
    case("cross_entropy", logits=normal(67, 10), target=some_ignored(10, 67, -100))
    case("cross_entropy", logits=normal(5, 1009, offset=1000), target=integers(1009, 5))
    case("cross_entropy", logits=normal(9, 33, scale=50), target=integers(33, 9))
    for n, d, c, attrs in [(5, 7, 4, {}), (5, 7, 4, {"reduction": "sum"}), (1, 1, 1, {}),
                           (33, 17, 129, {"logits_at_a_time": 1040}), (3, 1, 2, {}),
                           (0, 4, 3, {"reduction": "sum"}), (67, 9, 10, {"ignore_index": 3}),
                           (13, 5, 7, {"ignore_index": -1, "reduction": "sum",
                                       "logits_at_a_time": 7}), (2, 257, 3, {})]:
        ignored = attrs.get("ignore_index")
        target = integers(c, n) if ignored is None else some_ignored(c, n, ignored)
        case("linear_cross_entropy", attrs, x=normal(n, d), weight=normal(c, d), target=target)
    case("linear_cross_entropy", x=normal(9, 8, scale=10), weight=normal(33, 8),
         target=integers(33, 9))
    case("cross_entropy", {"reduction": "sum"}, logits=normal(0, 5), target=integers(5, 0))
    for reduction in ("mean", "sum", "none"):
        for shape in [(7,), (3, 5), (2, 0), (1,), (4, 3, 129)]:
            if reduction != "mean" or shape != (2, 0):
                case("mse_loss", {"reduction": reduction}, x=normal(*shape), target=normal(*shape))
    case("mse_loss", x=normal(31, 3, offset=1000), target=normal(31, 3, offset=1000))


def reductions():
    forms = [((7, 13), None), ((7, 13), 0), ((7, 13), 1), ((3, 4, 5), 1), ((3, 4, 5), [0, 2]),
             ((3, 4, 5), [1, 2]), ((2, 3, 5, 7), [1, 3]), ((2, 3, 5, 7), -2), ((1, 1), 0),
             ((), None), ((257, 3), 0), ((3, 1031), 1)]
    for op in ("sum", "mean", "max", "l2_norm"):
        make = distinct if op == "max" else normal
        for i, (shape, dim) in enumerate(forms):
            case(op, {"dim": dim, "keepdim": i % 3 == 1}, x=make(*shape))
            if i in (2, 4):
                case(op, {"dim": dim, "keepdim": True}, x=make(*shape))
        case(op, x=make(11))
        case(op, {"dim": 0}, x=make(4, 0))
        if op in ("sum", "l2_norm"):
            case(op, {"dim": 1}, x=make(4, 0))
        if op != "max":
            case(op, {"dim": 1}, x=normal(5, 101, offset=1000))
    case("sum", x=positive(20011))
    case("mean", {"dim": -1}, x=positive(1, 10007))
    case("max", {"dim": 1}, x=normal(3, 7, offset=-1e4))
    case("l2_norm", {"dim": 1}, x=normal(4, 33, scale=1e15))
    for shape, dim in [((5, 7), 1), ((5, 7), 0), ((3, 4, 5), 1), ((3, 4, 5), -1), ((13,), 0),
                       ((6, 1), 1), ((0, 3), 1), ((3, 1021), 1)]:
        case("l2_normalize", {"dim": dim}, x=normal(*shape))
    case("l2_normalize", x=normal(4, 9, scale=1e-6))
    case("l2_normalize", x=filled(0.0, 3, 5))
    case("l2_normalize", {"eps": 2.0}, x=normal(9, 4))


def products():
    for n in (0, 1, 7, 1031, 4096):
        case("inner_product", a=normal(n), b=normal(n))
    for m, n in [(5, 7), (1, 13), (0, 3), (64, 33), (129, 1)]:
        case("outer_product", a=normal(m), b=normal(n))
    for m, k, n in [(3, 5, 7), (1, 1, 1), (17, 33, 13), (3, 0, 4), (0, 5, 3), (4, 7, 0),
                    (1, 4096, 2), (31, 2, 67), (64, 64, 64), (8, 509, 9)]:
        case("matmul", a=normal(m, k), b=normal(k, n))
    case("matmul", a=normal(2, 3, 5), b=normal(2, 5, 7))
    case("matmul", a=normal(3, 2, 9, 11), b=normal(3, 2, 11, 1))
    case("matmul", a=normal(5, 33, offset=1000), b=normal(33, 6))
    for shape, out, bias in [((5, 7), 3, True), ((5, 7), 3, False), ((2, 3, 7), 11, True),
                             ((1, 1), 1, True), ((0, 4), 3, True), ((4, 0), 3, True),
                             ((65, 33), 17, True), ((1, 1021), 2, False), ((2, 3, 2, 5), 4, True)]:
        more = {"bias": normal(out)} if bias else {}
        case("linear", x=normal(*shape), weight=normal(out, shape[-1]), **more)
    for shape, hidden, out, more in [
            ((5, 7), 11, 3, "abr"), ((5, 7), 11, 3, ""), ((1, 1), 1, 1, ""),
            ((2, 3, 7), 28, 7, "abr"), ((5, 6), 4, 5, "a"), ((5, 6), 4, 5, "br"),
            ((0, 4), 3, 2, "ab"), ((4, 0), 3, 2, "ab"), ((65, 33), 41, 17, "abr"),
            ((2, 2, 3, 5), 129, 1, "r")]:
        of = {"up_bias": normal(hidden), "down_bias": normal(out),
              "residual": normal(*shape[:-1], out)}
        case("feed_forward", x=normal(*shape), up=normal(hidden, shape[-1]),
             down=normal(out, hidden), **{n: of[n] for n, k in zip(of, "abr") if k in more})
    case("feed_forward", x=normal(3, 4, scale=20), up=normal(8, 4), down=normal(4, 8))


def norms():
    for op in ("layer_norm", "rms_norm"):
        bias = op == "layer_norm"
        for shape, dims, parameters in [((4, 7), 1, "wb"), ((4, 7), 1, "w"), ((4, 7), 1, ""),
                                        ((2, 3, 5), 2, "wb"), ((2, 3, 5), 1, "wb"),
                                        ((13,), 1, "wb"), ((0, 4), 1, "wb"),
                                        ((3, 1031), 1, "wb"), ((301, 3), 1, "wb"),
                                        ((2, 4099), 1, "")]:
            tail = shape[len(shape) - dims:]
            more = {"weight": normal(*tail)} if "w" in parameters else {}
            if bias and "b" in parameters:
                more["bias"] = normal(*tail)
            case(op, {"normalized_shape": list(tail)}, x=normal(*shape, scale=2, offset=0.5),
                 **more)
        case(op, {"normalized_shape": [9], "eps": 0.1}, x=normal(5, 9), weight=normal(9))
        case(op, {"normalized_shape": [33]}, x=normal(6, 33, offset=1000), weight=normal(33))
        case(op, {"normalized_shape": [8]}, x=normal(3, 8, scale=1e4), weight=normal(8))
        case(op, {"normalized_shape": [5]}, x=normal(3, 5, scale=1e-4), weight=normal(5))
    case("layer_norm", {"normalized_shape": [1]}, x=normal(4, 1), weight=normal(1), bias=normal(1))
    case("layer_norm", {"normalized_shape": [6]}, x=filled(5.0, 2, 6), weight=normal(6),
         bias=normal(6))
    case("rms_norm", {"normalized_shape": [6]}, x=filled(0.0, 2, 6), weight=normal(6))

    for shape, affine, offset in [((5, 3), True, 0), ((5, 3), False, 0), ((4, 3, 7), True, 0),
                                  ((2, 5, 4, 3), True, 0), ((2, 5, 4, 3), False, 0),
                                  ((3, 2, 17, 19), True, 0), ((257, 2), True, 0),
                                  ((2, 1, 1, 2), True, 0), ((1, 4, 5, 5), True, 0),
                                  ((6, 3, 5), True, 1000)]:
        for training in (False, True):
            c = shape[1]
            more = {"weight": normal(c), "bias": normal(c)} if affine else {}
            attrs = {"training": training, "eps": 1e-5 if affine else 1e-3,
                     "momentum": 0.1 if affine else 0.7}
            case("batch_norm", attrs, x=normal(*shape, scale=2, offset=offset),
                 running_mean=normal(c), running_var=positive(c), **more)
    case("batch_norm", x=normal(3, 4, 2), running_mean=normal(4), running_var=positive(4),
         weight=normal(4), bias=normal(4))


def convolutions():
    for n, c, k, length, r, bias, attrs in [
            (2, 3, 4, 13, 3, True, {}), (2, 3, 4, 13, 3, False, {"stride": 2, "padding": 1}),
            (1, 1, 1, 5, 5, True, {}), (3, 4, 6, 17, 3, True, {"groups": 2, "dilation": 2}),
            (2, 6, 6, 19, 5, True, {"groups": 6, "padding": 2}), (0, 2, 3, 7, 3, True, {}),
            (1, 5, 7, 31, 1, True, {"stride": 3}), (2, 3, 2, 11, 2, True, {"stride": 4}),
            (1, 2, 3, 9, 4, True, {"stride": [2], "padding": [3], "dilation": [3]}),
            (1, 17, 3, 129, 7, True, {"padding": 3})]:
        more = {"bias": normal(k)} if bias else {}
        case("conv1d", attrs, x=normal(n, c, length),
             weight=normal(k, c // attrs.get("groups", 1), r), **more)
    for n, c, k, size, kernel, bias, attrs in [
            (2, 3, 4, (7, 9), (3, 3), True, {}), (2, 3, 4, (7, 9), (3, 3), False, {"padding": 1}),
            (1, 1, 1, (1, 1), (1, 1), True, {}), (1, 2, 3, (1, 1), (3, 3), True, {"padding": 1}),
            (1, 2, 3, (5, 4), (5, 4), True, {}), (2, 4, 6, (9, 11), (3, 3), True, {"groups": 2}),
            (2, 6, 6, (8, 7), (3, 3), True, {"groups": 6, "padding": 1}),
            (1, 4, 8, (7, 7), (3, 3), False, {"groups": 4, "stride": 2, "padding": 1}),
            (2, 3, 5, (11, 13), (3, 2), True, {"stride": [2, 3], "padding": [1, 0]}),
            (1, 3, 2, (13, 12), (3, 3), True, {"dilation": [2, 3]}),
            (1, 2, 2, (9, 9), (2, 2), True, {"stride": 3}), (0, 3, 2, (5, 5), (3, 3), True, {}),
            (2, 5, 3, (8, 8), (1, 1), True, {}), (2, 5, 3, (8, 8), (1, 1), True, {"stride": 2}),
            (4, 8, 16, (16, 16), (8, 8), True, {"stride": 8}),
            (1, 33, 5, (6, 5), (3, 3), True, {"padding": 1}),
            (1, 2, 3, (17, 19), (5, 5), True, {"padding": 2}),
            (1, 2, 3, (15, 14), (7, 7), True, {"stride": 2, "padding": 3}),
            (2, 4, 4, (10, 10), (3, 3), True,
             {"stride": 2, "padding": 2, "dilation": 2, "groups": 2}),
            (3, 1, 20, (12, 12), (5, 5), True, {})]:
        more = {"bias": normal(k)} if bias else {}
        case("conv2d", attrs, x=normal(n, c, *size),
             weight=normal(k, c // attrs.get("groups", 1), *kernel), **more)


def pools():
    for shape, attrs in [
            ((2, 3, 13), {"kernel_size": 2}), ((2, 3, 13), {"kernel_size": 3, "stride": 1}),
            ((1, 2, 12), {"kernel_size": 3, "stride": 2, "padding": 1}),
            ((2, 2, 11), {"kernel_size": 2, "dilation": 3}),
            ((1, 3, 10), {"kernel_size": 3, "stride": 2, "ceil_mode": True}),
            ((0, 3, 7), {"kernel_size": 2}), ((1, 1, 1), {"kernel_size": 1}),
            ((3, 7), {"kernel_size": [2], "stride": [3]}),
            ((1, 2, 67), {"kernel_size": 5, "stride": 4, "padding": 2, "ceil_mode": True}),
            ((2, 1, 9), {"kernel_size": 9})]:
        case("max_pool1d", attrs, x=distinct(*shape))
    windows = [
        ((2, 3, 6, 8), {"kernel_size": 2}), ((2, 3, 7, 9), {"kernel_size": 2}),
        ((1, 2, 8, 7), {"kernel_size": 3, "stride": 1}),
        ((1, 2, 8, 9), {"kernel_size": 3, "stride": 2, "padding": 1}),
        ((1, 3, 7, 8), {"kernel_size": [2, 3], "stride": [3, 1]}),
        ((2, 1, 10, 7), {"kernel_size": 3, "stride": 2, "ceil_mode": True}),
        ((1, 2, 6, 6), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
        ((0, 3, 4, 4), {"kernel_size": 2}), ((1, 1, 1, 1), {"kernel_size": 1}),
        ((3, 5, 6), {"kernel_size": 2}), ((1, 2, 11, 5), {"kernel_size": [11, 5]}),
        ((1, 5, 3, 3), {"kernel_size": 2, "stride": 2, "padding": 1})]
    dilated = [((1, 2, 9, 10), {"kernel_size": 2, "dilation": 3}),
               ((1, 1, 12, 11), {"kernel_size": [3, 2], "stride": 2, "dilation": [2, 4],
                                 "padding": 1, "ceil_mode": True})]
    for shape, attrs in windows + dilated:
        case("max_pool2d", attrs, x=distinct(*shape))
    for shape, attrs in windows:
        case("avg_pool2d", attrs, x=normal(*shape))
        if "padding" in attrs:
            case("avg_pool2d", {**attrs, "count_include_pad": False}, x=normal(*shape))
    case("avg_pool2d", {"kernel_size": 2, "divisor_override": 3}, x=normal(1, 2, 5, 6))
    case("avg_pool2d", {"kernel_size": 2, "stride": 2}, x=normal(1, 3, 6, 6, offset=1000))


def attentions():
    for b, lq, lk, h, d, attrs in [
            (1, 1, 1, 1, 1, {}), (2, 5, 5, 3, 4, {}), (2, 5, 5, 3, 4, {"is_causal": True}),
            (1, 7, 13, 2, 8, {}), (1, 7, 13, 2, 8, {"is_causal": True}),
            (1, 13, 7, 2, 8, {"is_causal": True}), (1, 65, 65, 1, 16, {"is_causal": True}),
            (1, 67, 131, 1, 32, {}), (1, 33, 33, 2, 64, {"is_causal": True}),
            (1, 17, 19, 1, 80, {}), (1, 16, 16, 1, 128, {"is_causal": True}),
            (2, 9, 9, 1, 3, {"scale": 0.5}), (1, 9, 9, 1, 3, {"scale": 2.0, "is_causal": True}),
            (1, 1, 31, 2, 8, {}), (1, 31, 1, 2, 8, {"is_causal": True}), (0, 4, 4, 2, 8, {}),
            (1, 129, 129, 1, 8, {"is_causal": True})]:
        case("flash_attention", attrs, q=normal(b, lq, h, d), k=normal(b, lk, h, d),
             v=normal(b, lk, h, d))
    for shape, attrs in [((2, 5, 3, 4), {}), ((1, 1, 1, 2), {"first": 1000}), ((0, 4, 2, 8), {}),
                         ((2, 7, 3, 2, 6), {"first": 3}), ((1, 67, 2, 32), {"base": 500000.0}),
                         ((1, 31, 3, 1, 64), {"base": 1.5})]:
        case("rotary", attrs, x=normal(*shape))
    case("flash_attention", q=normal(1, 9, 1, 8, scale=20), k=normal(1, 9, 1, 8, scale=20),
         v=normal(1, 9, 1, 8))


def shapes():
    for high, dims, shape in [(5, 3, (7,)), (3, 4, (4, 6)), (1, 1, (5,)), (11, 7, (0,)),
                              (6, 33, ()), (4, 1, (101,)), (97, 16, (3, 2, 5))]:
        case("embedding", indices=integers(high, *shape), weight=normal(high, dims))
    for x, to in [((2, 6), [3, 4]), ((2, 6), [-1]), ((12,), [2, -1, 3]), ((0, 3), [3, 0]),
                  ((1,), [])]:
        case("reshape", {"shape": to}, x=normal(*x))
    for x, start in [((2, 3, 5), 0), ((2, 3, 5), 1), ((4, 0, 3), -2), ((7,), 0), ((), 0)]:
        case("flatten", {"start_dim": start}, x=normal(*x))
    for x, dims in [((2, 3), [1, 0]), ((2, 3, 5), [2, 0, 1]), ((2, 3, 5), [0, 2, 1]),
                    ((2, 3, 5, 7), [0, 2, 3, 1]), ((3, 1, 4), [-1, -2, -3]), ((0, 3), [1, 0]),
                    ((37, 65), [1, 0]), ((2, 3, 2, 3, 2), [4, 1, 3, 0, 2])]:
        case("permute", {"dims": dims}, x=normal(*x))
    for x, a, b in [((3, 5), 0, 1), ((2, 3, 5), 1, 2), ((2, 3, 5), 0, -1), ((7,), 0, 0),
                    ((4, 33, 31), -1, -2)]:
        case("transpose", {"dim0": a, "dim1": b}, x=normal(*x))
    for xs, dim in [([(2, 3), (4, 3)], 0), ([(2, 3), (2, 1), (2, 5)], 1), ([(3,)], 0),
                    ([(2, 0, 3), (2, 4, 3)], 1), ([(2, 3, 4), (2, 3, 1)], -1)]:
        case("concat", {"dim": dim}, **{f"xs.{i}": normal(*x) for i, x in enumerate(xs)})
    for x, attrs in [((7, 3), {"dim": 0, "start": 2, "end": 5}), ((7, 3), {"start": 4}),
                     ((3, 7), {"dim": 1, "start": -3}),
                     ((3, 7), {"dim": -1, "start": 1, "end": -2}),
                     ((5,), {"start": 3, "end": 2}),
                     ((2, 5, 3), {"dim": 1, "start": 0, "end": 99})]:
        case("slice", attrs, x=normal(*x))


# --- files --------------------------------------------------------------------------------------


def save(path, tensors, metadata):
    """safetensors; Python's package writes the metadata in any order, so not the same bytes."""
    header, data = {"__metadata__": metadata}, b""
    for name, x in tensors.items():
        raw = x.contiguous().numpy().tobytes()
        header[name] = {"dtype": DTYPES[x.dtype], "shape": list(x.shape),
                        "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def classify(oracle, name, shape, inputs):
    if name == "out.0":
        return oracle.out
    name = name.removeprefix("grad.")
    kind = oracle.grads.get(name, oracle.grads.get("*"))
    if kind == "broadcast":
        return "B" if inputs[name].shape == shape else "E"
    return kind


def write(folder, name, op, attrs, makers):
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    inputs = {n: make(generator) for n, make in makers.items()}
    oracle = ORACLES[op]
    shape = oracle.f(inputs, attrs).shape
    gout = normal(*shape)(generator)
    expected = answers(oracle, inputs, attrs, gout)
    magnitudes = oracle.magnitude(oracle, inputs, attrs, gout) if oracle.magnitude else {}
    classes = {n: classify(oracle, n, shape, inputs) for n in expected}
    tensors = {f"in.{n}": x.float() if x.is_floating_point() else x for n, x in inputs.items()}
    tensors["gout.0"] = gout.float()
    tensors.update(expected)
    tensors.update({f"mag.{n}": magnitudes[n].float() for n in expected
                    if classes[n] in "DE" and n in magnitudes})
    for n, x in tensors.items():
        assert torch.isfinite(x.double()).all(), f"{name}: {n} is not finite"
    save(folder / f"{name}.safetensors", tensors,
         {"op": op, "attrs": json.dumps(attrs), "classes": json.dumps(classes),
          "condition": f"{oracle.condition(inputs, attrs):.6g}"})


def main():
    torch.set_num_threads(1)  # sums in one order
    beside = pathlib.Path(__file__).parent / "cases"
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else beside
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.safetensors"):
        old.unlink()
    for family in (elementwise, images, softmaxes, losses, reductions, products, norms,
                   convolutions, pools, attentions, shapes):
        family()
    numbers = {}
    for op, attrs, makers in CASES:
        numbers[op] = numbers.get(op, 0) + 1
        write(folder, f"{op}-{numbers[op]:02}", op, attrs, makers)
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{len(CASES)} cases of {len(numbers)} ops, {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()

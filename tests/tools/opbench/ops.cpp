#include "ops.h"

#include <algorithm>

namespace opbench {
namespace {

using namespace ebb;

template <Tensor (*f)(const Tensor&)>
Function unary(Case& c) {
  return [x = c.input(c.shape())] { return f(x); };
}

template <Tensor (*f)(const Tensor&)>
Function unary_of_positive(Case& c) {
  return [x = c.positive_input(c.shape())] { return f(x); };
}

// Operands of the case's shape, or of shapes a and b of their own.
template <Tensor (*f)(const Tensor&, const Tensor&)>
Function binary(Case& c) {
  const Tensor a = c.input(c.has("a") ? c.shape("a") : c.shape());
  const Tensor b = c.positive_input(c.has("b") ? c.shape("b") : c.shape());
  return [a, b] { return f(a, b); };
}

Function add_broadcast(Case& c) {
  const Shape shape = c.shape("shape", 1);
  const Tensor a = c.input(shape), b = c.input({shape[shape.rank() - 1]});
  return [a, b] { return add(a, b); };
}

template <Tensor (*f)(const Tensor&, const ReduceOptions&)>
Function reduce(Case& c) {
  return [x = c.input(c.shape()), options = c.reduction_dims()] { return f(x, options); };
}

Function sum_dim1(Case& c) {
  return [x = c.input(c.shape()), options = ReduceOptions{.dim = {1}}] { return sum(x, options); };
}

template <Tensor (*f)(const Tensor&, SoftmaxOptions)>
Function along(Case& c) {
  return [x = c.input(c.shape()), dim = c.integer("dim", -1)] { return f(x, {.dim = dim}); };
}

Function make_l2_normalize(Case& c) {
  const Tensor x = c.input(c.shape());
  return [x, dim = c.integer("dim", -1), eps = c.number("eps", 1e-12)] {
    return l2_normalize(x, {.dim = dim, .eps = eps});
  };
}

// In case files l2_norm is what makes each row's norm 1; with dimensions it is the norm itself.
Function make_l2_norm(Case& c) {
  return c.has("dim") || c.has("keepdim") ? reduce<l2_norm>(c) : make_l2_normalize(c);
}

Function make_gelu(Case& c) {
  const Tensor x = c.input(c.shape());
  return [x, kind = c.word("approximate", "tanh")] { return gelu(x, {.approximate = kind}); };
}

Function make_swiglu(Case& c) {
  const Tensor gate = c.input(c.shape()), up = c.input(c.shape());
  return [gate, up] { return swiglu(gate, up); };
}

Function make_grayscale(Case& c) {
  return [x = c.input(c.shape())] { return rgb_to_grayscale(x); };
}

Function make_invert(Case& c) {
  return [x = c.input(c.shape())] { return invert_colors(x); };
}

Function make_dropout(Case& c) {
  const Tensor x = c.input(c.shape());
  const DropoutOptions options{.p = c.number("p", 0.5), .training = c.flag("training", true)};
  return [x, options] { return dropout(x, options); };
}

Function make_cross_entropy(Case& c) {
  const Shape shape = c.shape("shape", 2);
  const Tensor x = c.input(shape), target = c.indices({shape[0]}, shape[1]);
  const CrossEntropyOptions options{
      .reduction = parse_reduction("cross_entropy", c.word("reduction", "mean")),
      .label_smoothing = c.number("label_smoothing", 0),
      .check_targets = false};  // as PyTorch's, which a wrong target stops only later
  return [=] { return cross_entropy(x, target, options); };
}

Function make_mse_loss(Case& c) {
  const Tensor x = c.input(c.shape()), target = c.input(c.shape());
  const auto reduction = parse_reduction("mse_loss", c.word("reduction", "mean"));
  return [=] { return mse_loss(x, target, {.reduction = reduction}); };
}

Function make_outer(Case& c) {
  const Shape shape = c.shape("shape", 1);
  const Tensor a = c.input({shape[0]}), b = c.input({shape[shape.rank() - 1]});
  return [a, b] { return outer_product(a, b); };
}

// [batch…, m, k, n], or the operands' own shapes.
Function make_matmul(Case& c) {
  Shape of_a, of_b;
  if (c.has("a")) {
    of_a = c.shape("a");
    of_b = c.shape("b");
  } else {
    const Shape s = c.shape();
    require(s.rank() >= 3, Kind::shape, "matmul", "bad shape of a case", s, "[batch…,m,k,n]");
    of_a = s.without(s.rank() - 1);
    of_b = s.without(s.rank() - 3);
  }
  const Tensor a = c.input(of_a), b = c.input(of_b);
  return [a, b] { return matmul(a, b); };
}

Function make_linear(Case& c) {
  const Shape weight = c.shape("weight", 1);
  const Tensor x = c.input(c.shape()), w = c.input(weight), b = c.input({weight[0]});
  return [=] { return linear(x, w, b); };
}

// The layers' sizes by the first one's weight, [hidden,in], and `out`; all that may be is there.
Function make_feed_forward(Case& c) {
  const Shape shape = c.shape("shape", 1), up = c.shape("up", 2);
  const std::int64_t out = c.integer("out", up[1]);
  const Tensor x = c.input(shape), first = c.input(up), last = c.input({out, up[0]});
  const FeedForwardOptions options{.up_bias = c.input({up[0]}),
                                   .down_bias = c.input({out}),
                                   .residual = c.input(shape.with(shape.rank() - 1, out))};
  return [=] { return feed_forward(x, first, last, options); };
}

Function make_linear_cross_entropy(Case& c) {
  const Shape shape = c.shape("shape", 1), weight = c.shape("weight", 1);
  const Tensor x = c.input(shape), w = c.input(weight), t = c.indices({shape[0]}, weight[0]);
  const auto reduction = parse_reduction("linear_cross_entropy", c.word("reduction", "mean"));
  return [=] {
    return linear_cross_entropy(x, w, t, {.reduction = reduction, .check_targets = false});
  };
}

Function make_rotary(Case& c) {
  const Tensor x = c.input(c.shape());
  return [x, base = c.number("base", 10000)] { return rotary(x, {.base = base}); };
}

Shape normalized_shape(const Case& c) {
  const Shape shape = c.shape("shape", 1);
  return c.shape_or("normalized_shape", {shape[shape.rank() - 1]});
}

Function make_layer_norm(Case& c) {
  const Shape rows = normalized_shape(c);
  const Tensor x = c.input(c.shape()), w = c.input(rows), b = c.input(rows);
  const LayerNormOptions options{.normalized_shape = rows, .eps = c.number("eps", 1e-5)};
  return [=] { return layer_norm(x, w, b, options); };
}

Function make_rms_norm(Case& c) {
  const Shape rows = normalized_shape(c);
  const Tensor x = c.input(c.shape()), w = c.input(rows);
  const RmsNormOptions options{.normalized_shape = rows, .eps = c.number("eps", 1e-6)};
  return [=] { return rms_norm(x, w, options); };
}

Function make_batch_norm(Case& c) {
  const std::int64_t channels = c.shape("shape", 2)[1];
  const Tensor x = c.input(c.shape()), w = c.input({channels}), b = c.input({channels});
  const Tensor mean = c.statistics(channels, 0), var = c.statistics(channels, 1);
  const BatchNormOptions options{.training = c.flag("training", true),
                                 .momentum = c.number("momentum", 0.1),
                                 .eps = c.number("eps", 1e-5)};
  return [=] { return batch_norm(x, mean, var, w, b, options); };
}

Function make_conv1d(Case& c) {
  const Shape weight = c.shape("weight", 1);
  const Tensor x = c.input(c.shape()), w = c.input(weight), b = c.input({weight[0]});
  const Conv1dOptions options{c.pair("stride", 1).w, c.pair("padding", 0).w,
                              c.pair("dilation", 1).w, c.integer("groups", 1)};
  return [=] { return conv1d(x, w, b, options); };
}

Function make_conv2d(Case& c) {
  const Shape weight = c.shape("weight", 1);
  const Tensor x = c.input(c.shape()), w = c.input(weight), b = c.input({weight[0]});
  const Conv2dOptions options{c.pair("stride", 1), c.pair("padding", 0), c.pair("dilation", 1),
                              c.integer("groups", 1)};
  return [=] { return conv2d(x, w, b, options); };
}

Pair kernel_size(const Case& c) {
  const char* name = c.has("kernel_size") ? "kernel_size" : "kernel";
  require(c.has(name), Kind::value, "opbench", "no `kernel`", "none", "the window's size");
  return c.pair(name, 1);
}

Function make_max_pool1d(Case& c) {
  const std::int64_t kernel = kernel_size(c).w;
  const Tensor x = c.input(c.shape());
  const MaxPool1dOptions options{.stride = c.pair("stride", kernel).w,
                                 .padding = c.pair("padding", 0).w,
                                 .dilation = c.pair("dilation", 1).w,
                                 .ceil_mode = c.flag("ceil_mode", false)};
  return [=] { return max_pool1d(x, kernel, options); };
}

Function make_max_pool2d(Case& c) {
  const Pair kernel = kernel_size(c);
  const Tensor x = c.input(c.shape());
  const MaxPool2dOptions options{.stride = c.pair("stride", kernel),
                                 .padding = c.pair("padding", 0),
                                 .dilation = c.pair("dilation", 1),
                                 .ceil_mode = c.flag("ceil_mode", false)};
  return [=] { return max_pool2d(x, kernel, options); };
}

Function make_avg_pool2d(Case& c) {
  const Pair kernel = kernel_size(c);
  const Tensor x = c.input(c.shape());
  const AvgPool2dOptions options{.stride = c.pair("stride", kernel),
                                 .padding = c.pair("padding", 0),
                                 .ceil_mode = c.flag("ceil_mode", false),
                                 .count_include_pad = c.flag("count_include_pad", true)};
  return [=] { return avg_pool2d(x, kernel, options); };
}

// [batch, length, heads, head_dim], the keys' and values' own in kv.
Function make_flash_attention(Case& c) {
  const Shape kv = c.shape_or("kv", c.shape());
  const Tensor q = c.input(c.shape()), k = c.input(kv), v = c.input(kv);
  const FlashAttentionOptions options{.is_causal = c.flag("is_causal", false),
                                      .dropout = c.number("dropout", 0)};
  return [=] { return flash_attention(q, k, v, options); };
}

// In case files attention's shape is [batch, heads, length, head_dim].
Function make_attention(Case& c) {
  const Shape s = c.shape();
  require(s.rank() == 4, Kind::shape, "attention", "bad shape of a case", s, "4 dimensions");
  const Shape shape{s[0], s[2], s[1], s[3]};
  const Tensor q = c.input(shape), k = c.input(shape), v = c.input(shape);
  const FlashAttentionOptions options{.is_causal = c.flag("causal", false)};
  return [=] { return flash_attention(q, k, v, options); };
}

Function make_embedding(Case& c) {
  const Shape weight = c.shape("weight", 1);
  const Tensor indices = c.indices(c.shape(), weight[0]), w = c.input(weight);
  return [=] { return embedding(indices, w, {.check_indices = false}); };
}

Function make_permute(Case& c) {
  return [x = c.input(c.shape()), dims = c.integers("dims")] { return permute(x, dims); };
}

Function make_transpose(Case& c) {
  const Tensor x = c.input(c.shape());
  return [x, a = c.integer("dim0", -2), b = c.integer("dim1", -1)] { return transpose(x, a, b); };
}

Function make_reshape(Case& c) {
  const Tensor x = c.input(c.shape());
  return [x] { return flatten(x); };
}

Function make_concat(Case& c) {
  const Tensor a = c.input(c.shape()), b = c.input(c.shape());
  return [a, b, dim = c.integer("dim", 0)] { return concat({a, b}, dim); };
}

Function make_slice(Case& c) {
  const Tensor x = c.input(c.shape());
  return [x, dim = c.integer("dim", 0), start = c.integer("start", 0),
          end = c.integer("end", slice_to_end)] { return slice(x, dim, start, end); };
}

const std::vector<Op>& ops() {
  static const std::vector<Op> all = {
      {{"add"}, binary<add>, Reads::only_shapes},
      {{"add_broadcast"}, add_broadcast, Reads::only_shapes},
      {{"sub"}, binary<sub>, Reads::nothing},
      {{"mul"}, binary<mul>, Reads::inputs},
      {{"div"}, binary<div>, Reads::inputs},
      {{"neg"}, unary<neg>, Reads::nothing},
      {{"exp"}, unary<exp>, Reads::output},
      {{"log"}, unary_of_positive<log>, Reads::inputs},
      {{"sqrt"}, unary_of_positive<sqrt>, Reads::output},
      {{"tanh"}, unary<tanh>, Reads::output},
      {{"sigmoid"}, unary<sigmoid>, Reads::output},
      {{"relu"}, unary<relu>, Reads::output},
      {{"silu"}, unary<silu>, Reads::inputs},
      {{"mish"}, unary<mish>, Reads::inputs},
      {{"gelu"}, make_gelu, Reads::inputs},
      {{"swiglu"}, make_swiglu, Reads::inputs},
      {{"rgb_to_grayscale", "grayscale"}, make_grayscale, Reads::nothing},
      {{"invert_colors", "invert"}, make_invert, Reads::nothing},
      {{"dropout"}, make_dropout, Reads::nothing},
      {{"softmax"}, along<softmax>, Reads::output},
      {{"log_softmax"}, along<log_softmax>, Reads::output},
      {{"cross_entropy"}, make_cross_entropy, Reads::inputs},
      {{"linear_cross_entropy"}, make_linear_cross_entropy, Reads::inputs},
      {{"mse_loss"}, make_mse_loss, Reads::inputs},
      {{"sum"}, reduce<sum>, Reads::nothing},
      {{"sum_dim1"}, sum_dim1, Reads::nothing},
      {{"mean"}, reduce<mean>, Reads::nothing},
      {{"max"}, reduce<max>, Reads::places},
      {{"l2_norm"}, make_l2_norm, Reads::inputs},
      {{"l2_normalize"}, make_l2_normalize, Reads::inputs},
      {{"inner_product", "inner"}, binary<inner_product>, Reads::inputs},
      {{"outer_product", "outer"}, make_outer, Reads::inputs},
      {{"matmul"}, make_matmul, Reads::inputs},
      {{"linear"}, make_linear, Reads::inputs},
      {{"feed_forward"}, make_feed_forward, Reads::inputs},
      {{"layer_norm"}, make_layer_norm, Reads::inputs},
      {{"rms_norm"}, make_rms_norm, Reads::inputs},
      {{"batch_norm", "batch_norm2d"}, make_batch_norm, Reads::inputs},
      {{"conv1d"}, make_conv1d, Reads::inputs},
      {{"conv2d"}, make_conv2d, Reads::inputs},
      {{"max_pool1d"}, make_max_pool1d, Reads::places},
      {{"max_pool2d"}, make_max_pool2d, Reads::places},
      {{"avg_pool2d"}, make_avg_pool2d, Reads::nothing},
      {{"flash_attention"}, make_flash_attention, Reads::inputs_and_output},
      {{"attention"}, make_attention, Reads::inputs_and_output},
      {{"rotary"}, make_rotary, Reads::nothing},
      {{"embedding"}, make_embedding, Reads::nothing},
      {{"reshape"}, make_reshape, Reads::only_shapes},
      {{"permute"}, make_permute, Reads::nothing},
      {{"transpose"}, make_transpose, Reads::nothing},
      {{"concat"}, make_concat, Reads::nothing},
      {{"slice"}, make_slice, Reads::nothing},
  };
  return all;
}

}  // namespace

const Op& find_op(const std::string& name) {
  const auto found = std::ranges::find_if(
      ops(), [&](const Op& op) { return std::ranges::count(op.names, name) > 0; });
  require(found != ops().end(), Kind::value, "opbench", "no such op", name, "one of the library's");
  return *found;
}

}  // namespace opbench

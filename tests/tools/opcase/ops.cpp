#include "ops.h"

namespace opcase {
namespace {

using namespace ebb;

// PyTorch takes this form, the library does not.
void require_form(bool ok, const char* form) {
  if (!ok) throw Unsupported(std::string("no such form: ") + form);
}

template <Tensor (*f)(const Tensor&)>
Tensor unary(const Call& c) {
  return f(c["x"]);
}

template <Tensor (*f)(const Tensor&, const Tensor&)>
Tensor binary(const Call& c) {
  return f(c["a"], c["b"]);
}

template <Tensor (*f)(const Tensor&, const ReduceOptions&)>
Tensor reduce(const Call& c) {
  return f(c["x"], c.attributes.reduction_dims());
}

template <Tensor (*f)(const Tensor&, SoftmaxOptions)>
Tensor along(const Call& c) {
  return f(c["x"], {.dim = c.attributes.integer("dim")});
}

Reduction reduction(const Call& c) { return parse_reduction(c.op, c.attributes.word("reduction")); }

Tensor run_grayscale(const Call& c) {
  const auto weights = c.attributes.numbers("weights");
  require(weights.size() == 3, Kind::value, c.op, "a weight for each of R, G and B",
          text(weights.size(), " weights"), 3);
  return rgb_to_grayscale(c["x"], {.weights = {weights[0], weights[1], weights[2]}});
}

Tensor run_invert(const Call& c) {
  InvertOptions options;
  if (c.attributes.given("max")) options.max = c.attributes.number("max");
  return invert_colors(c["x"], options);
}

Tensor run_cross_entropy(const Call& c) {
  const Tensor x = c["logits"], t = c["target"];
  require_form(!x.defined() || x.rank() == 2, "logits that are not [N,C]");
  require_form(!x.defined() || !t.defined() || t.shape() != x.shape() || !is_floating(t.dtype()),
               "targets as probabilities");
  const auto& a = c.attributes;
  return cross_entropy(x, t, c["weight"],
                       {.reduction = reduction(c),
                        .ignore_index = a.integer("ignore_index"),
                        .label_smoothing = a.number("label_smoothing")});
}

Tensor run_matmul(const Call& c) {
  const Tensor a = c["a"], b = c["b"];
  require_form(c.rank("a") != 1 && c.rank("b") != 1, "a 1-D operand");
  const bool batched = c.rank("a") >= 2 && c.rank("b") >= 2;
  require_form(!batched || a.rank() == b.rank(), "operands of unequal rank");
  for (int d = 0; batched && d < a.rank() - 2; ++d)
    require_form(a.shape()[d] == b.shape()[d] || (a.shape()[d] != 1 && b.shape()[d] != 1),
                 "batch dimensions that are broadcast");
  return matmul(a, b);
}

Tensor run_linear(const Call& c) {
  require_form(c.rank("x") != 1, "a 1-D input");
  require_form(c.rank("weight") != 1, "a 1-D weight");
  return linear(c["x"], c["weight"], c["bias"]);
}

Tensor run_feed_forward(const Call& c) {
  return feed_forward(c["x"], c["up"], c["down"], {c["up_bias"], c["down_bias"], c["residual"]});
}

Tensor run_linear_cross_entropy(const Call& c) {
  LinearCrossEntropyOptions options{.reduction = reduction(c),
                                    .ignore_index = c.attributes.integer("ignore_index")};
  if (!c.attributes.absent("logits_at_a_time"))
    options.logits_at_a_time = c.attributes.integer("logits_at_a_time");
  return linear_cross_entropy(c["x"], c["weight"], c["target"], options);
}

// None means the last dimension, as the library's options say.
Shape normalized_shape(const Call& c) {
  if (c.attributes.absent("normalized_shape")) return {};
  const auto dims = c.attributes.integers("normalized_shape");
  require(!dims.empty(), Kind::shape, c.op, "normalized_shape is empty", "[]",
          "at least one dimension");
  return Shape(dims, c.op);
}

Tensor run_layer_norm(const Call& c) {
  return layer_norm(c["x"], c["weight"], c["bias"],
                    {.normalized_shape = normalized_shape(c), .eps = c.attributes.number("eps")});
}

Tensor run_rms_norm(const Call& c) {
  return rms_norm(c["x"], c["weight"],
                  {.normalized_shape = normalized_shape(c), .eps = c.attributes.number("eps")});
}

Tensor run_l2_normalize(const Call& c) {
  return l2_normalize(c["x"],
                      {.dim = c.attributes.integer("dim"), .eps = c.attributes.number("eps")});
}

// The running tensors are written to: a call's own copies.
Tensor run_batch_norm(const Call& c) {
  const auto& a = c.attributes;
  const auto own = [&](const char* name) { return c.rank(name) < 0 ? Tensor() : c[name].clone(); };
  return batch_norm(
      c["x"], own("running_mean"), own("running_var"), c["weight"], c["bias"],
      {.training = a.flag("training"), .momentum = a.number("momentum"), .eps = a.number("eps")});
}

void require_conv_form(const Call& c, int batched_rank) {
  require_form(c.rank("x") != batched_rank - 1, "an input without a batch");
  require_form(!c.attributes.is_word("padding"), "padding by name");
}

Tensor run_conv1d(const Call& c) {
  require_conv_form(c, 3);
  const auto& a = c.attributes;
  return conv1d(
      c["x"], c["weight"], c["bias"],
      {a.single("stride"), a.single("padding"), a.single("dilation"), a.integer("groups")});
}

Tensor run_conv2d(const Call& c) {
  require_conv_form(c, 4);
  const auto& a = c.attributes;
  return conv2d(c["x"], c["weight"], c["bias"],
                {a.pair("stride"), a.pair("padding"), a.pair("dilation"), a.integer("groups")});
}

Tensor run_max_pool1d(const Call& c) {
  const auto& a = c.attributes;
  MaxPool1dOptions options{.padding = a.single("padding"),
                           .dilation = a.single("dilation"),
                           .ceil_mode = a.flag("ceil_mode")};
  if (!a.absent("stride")) options.stride = a.single("stride");
  return max_pool1d(c["x"], a.single("kernel_size"), options);
}

Tensor run_max_pool2d(const Call& c) {
  const auto& a = c.attributes;
  MaxPool2dOptions options{.padding = a.pair("padding"),
                           .dilation = a.pair("dilation"),
                           .ceil_mode = a.flag("ceil_mode")};
  if (!a.absent("stride")) options.stride = a.pair("stride");
  return max_pool2d(c["x"], a.pair("kernel_size"), options);
}

Tensor run_avg_pool2d(const Call& c) {
  const auto& a = c.attributes;
  AvgPool2dOptions options{.padding = a.pair("padding"),
                           .ceil_mode = a.flag("ceil_mode"),
                           .count_include_pad = a.flag("count_include_pad")};
  if (!a.absent("stride")) options.stride = a.pair("stride");
  if (!a.absent("divisor_override")) options.divisor_override = a.integer("divisor_override");
  return avg_pool2d(c["x"], a.pair("kernel_size"), options);
}

Tensor run_flash_attention(const Call& c) {
  FlashAttentionOptions options{.is_causal = c.attributes.flag("is_causal")};
  if (!c.attributes.absent("scale")) options.scale = c.attributes.number("scale");
  return flash_attention(c["q"], c["k"], c["v"], options);
}

Tensor run_rotary(const Call& c) {
  return rotary(c["x"],
                {.first = c.attributes.integer("first"), .base = c.attributes.number("base")});
}

Tensor run_dropout(const Call& c) {
  const auto& a = c.attributes;
  return dropout(c["x"], {.p = a.number("p"),
                          .training = a.flag("training"),
                          .seed = static_cast<std::uint64_t>(a.integer("seed"))});
}

Tensor run_concat(const Call& c) {
  std::vector<Tensor> xs;
  for (Tensor x = c["xs.0"]; x.defined(); x = c["xs." + std::to_string(xs.size())]) xs.push_back(x);
  return concat(xs, c.attributes.integer("dim"));
}

Tensor run_slice(const Call& c) {
  const auto& a = c.attributes;
  return slice(c["x"], a.integer("dim"), a.integer("start"),
               a.absent("end") ? slice_to_end : a.integer("end"));
}

const Json none = Json::object();
const Json dims = {{"dim", nullptr}, {"keepdim", false}};
const Json convolution = {{"stride", 1}, {"padding", 0}, {"dilation", 1}, {"groups", 1}};
const Json max_pooling = {{"kernel_size", nullptr},
                          {"stride", nullptr},
                          {"padding", 0},
                          {"dilation", 1},
                          {"ceil_mode", false}};
const Json avg_pooling = {
    {"kernel_size", nullptr}, {"stride", nullptr},         {"padding", 0},
    {"ceil_mode", false},     {"count_include_pad", true}, {"divisor_override", nullptr}};

}  // namespace

const std::vector<Op>& ops() {
  static const std::vector<Op> all = {
      {"add", {"a", "b"}, none, binary<add>},
      {"sub", {"a", "b"}, none, binary<sub>},
      {"mul", {"a", "b"}, none, binary<mul>},
      {"div", {"a", "b"}, none, binary<div>},
      {"neg", {"x"}, none, unary<neg>},
      {"exp", {"x"}, none, unary<exp>},
      {"log", {"x"}, none, unary<log>},
      {"sqrt", {"x"}, none, unary<sqrt>},
      {"tanh", {"x"}, none, unary<tanh>},
      {"sigmoid", {"x"}, none, unary<sigmoid>},
      {"relu", {"x"}, none, unary<relu>},
      {"silu", {"x"}, none, unary<silu>},
      {"mish", {"x"}, none, unary<mish>},
      {"gelu",
       {"x"},
       {{"approximate", "tanh"}},
       [](const Call& c) {
         return gelu(c["x"], {.approximate = c.attributes.word("approximate")});
       }},
      {"swiglu", {"gate", "up"}, none, [](const Call& c) { return swiglu(c["gate"], c["up"]); }},
      {"rgb_to_grayscale", {"x"}, {{"weights", {0.299, 0.587, 0.114}}}, run_grayscale, true},
      {"invert_colors", {"x"}, {{"max", 1.0}}, run_invert, true},
      {"softmax", {"x"}, {{"dim", -1}}, along<softmax>},
      {"log_softmax", {"x"}, {{"dim", -1}}, along<log_softmax>},
      {"cross_entropy",
       {"logits", "target", "weight?!"},
       {{"reduction", "mean"}, {"ignore_index", -100}, {"label_smoothing", 0.0}},
       run_cross_entropy},
      {"linear_cross_entropy",
       {"x", "weight", "target"},
       {{"reduction", "mean"}, {"ignore_index", -100}, {"logits_at_a_time", nullptr}},
       run_linear_cross_entropy},
      {"mse_loss",
       {"x", "target"},
       {{"reduction", "mean"}},
       [](const Call& c) { return mse_loss(c["x"], c["target"], {.reduction = reduction(c)}); }},
      {"sum", {"x"}, dims, reduce<sum>},
      {"mean", {"x"}, dims, reduce<mean>},
      {"max", {"x"}, dims, reduce<max>},
      {"l2_norm", {"x"}, dims, reduce<l2_norm>},
      {"l2_normalize", {"x"}, {{"dim", 1}, {"eps", 1e-12}}, run_l2_normalize},
      {"inner_product", {"a", "b"}, none, binary<inner_product>},
      {"outer_product", {"a", "b"}, none, binary<outer_product>},
      {"matmul", {"a", "b"}, none, run_matmul},
      {"linear", {"x", "weight", "bias?"}, none, run_linear},
      {"feed_forward",
       {"x", "up", "down", "up_bias?", "down_bias?", "residual?"},
       none,
       run_feed_forward},
      {"layer_norm",
       {"x", "weight?", "bias?"},
       {{"normalized_shape", nullptr}, {"eps", 1e-5}},
       run_layer_norm},
      {"rms_norm", {"x", "weight?"}, {{"normalized_shape", nullptr}, {"eps", 1e-6}}, run_rms_norm},
      {"batch_norm",
       {"x", "running_mean!", "running_var!", "weight?", "bias?"},
       {{"training", false}, {"momentum", 0.1}, {"eps", 1e-5}},
       run_batch_norm},
      {"conv1d", {"x", "weight", "bias?"}, convolution, run_conv1d},
      {"conv2d", {"x", "weight", "bias?"}, convolution, run_conv2d},
      {"max_pool1d", {"x"}, max_pooling, run_max_pool1d},
      {"max_pool2d", {"x"}, max_pooling, run_max_pool2d},
      {"avg_pool2d", {"x"}, avg_pooling, run_avg_pool2d},
      {"flash_attention",
       {"q", "k", "v"},
       {{"is_causal", false}, {"scale", nullptr}},
       run_flash_attention},
      {"rotary", {"x"}, {{"first", 0}, {"base", 10000.0}}, run_rotary},
      {"dropout", {"x"}, {{"p", 0.5}, {"training", true}, {"seed", 0}}, run_dropout},
      {"embedding",
       {"indices", "weight"},
       none,
       [](const Call& c) { return embedding(c["indices"], c["weight"]); }},
      {"reshape",
       {"x"},
       {{"shape", nullptr}},
       [](const Call& c) { return reshape(c["x"], c.attributes.integers("shape")); }},
      {"flatten",
       {"x"},
       {{"start_dim", 0}},
       [](const Call& c) { return flatten(c["x"], c.attributes.integer("start_dim")); }},
      {"permute",
       {"x"},
       {{"dims", nullptr}},
       [](const Call& c) { return permute(c["x"], c.attributes.integers("dims")); }},
      {"transpose",
       {"x"},
       {{"dim0", nullptr}, {"dim1", nullptr}},
       [](const Call& c) {
         return transpose(c["x"], c.attributes.integer("dim0"), c.attributes.integer("dim1"));
       }},
      {"concat", {"xs.*"}, {{"dim", 0}}, run_concat},
      {"slice", {"x"}, {{"dim", 0}, {"start", 0}, {"end", nullptr}}, run_slice},
  };
  return all;
}

const Op* find_op(const std::string& name) {
  for (const Op& op : ops())
    if (op.name == name) return &op;
  return nullptr;
}

}  // namespace opcase

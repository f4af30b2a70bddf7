#include "transformer/model.h"

#include <nlohmann/json.hpp>

namespace transformer {

using namespace ebb;
using Json = nlohmann::ordered_json;

namespace {

constexpr const char* program = "train_transformer";

// Files are not trusted: no number that they give leads to more memory than they have data.
constexpr std::int64_t most = 1 << 24;

// What a description has under a key, as a message may show it.
std::string given(const Json& json, const char* key) {
  const auto found = json.find(key);
  if (found == json.end()) return "nothing";
  return found->is_structured() ? found->type_name() : found->dump();
}

std::int64_t number(const Json& json, const char* key, const std::filesystem::path& path) {
  const auto found = json.find(key);
  const bool ok = found != json.end() && found->is_number_integer();
  const auto value = ok ? found->get<std::int64_t>() : 0;
  require(1 <= value && value <= most, Kind::format, "load_model",
          text(path.string(), " describes a net with a bad ", key), given(json, key),
          text("1 to ", most));
  return value;
}

nn::TransformerOptions parse(const std::string& description, const std::filesystem::path& path) {
  const Json json = Json::parse(description, nullptr, false);
  require(json.is_object(), Kind::format, "load_model",
          text(path.string(), " is no checkpoint of ", program), text("model ", description),
          "a net described in JSON");
  nn::TransformerOptions o;
  o.vocabulary = number(json, "vocabulary", path);
  o.context = number(json, "context", path);
  o.layers = number(json, "layers", path);
  o.heads = number(json, "heads", path);
  o.width = number(json, "width", path);
  const auto second = [&](const char* key, const char* a, const char* b) {  // which of the two
    const auto found = json.find(key);
    require(found != json.end() && (*found == a || *found == b), Kind::format, "load_model",
            text(path.string(), " describes a net with a bad ", key), given(json, key),
            text(a, " or ", b));
    return *found == b;
  };
  if (second("positions", "learned", "rotary")) o.positions = nn::Positions::rotary;
  if (second("feed_forward", "gelu", "swiglu")) o.feed_forward = nn::FeedForwardKind::swiglu;
  if (second("norm", "layer", "rms")) o.norm = nn::Norm::rms;
  return o;
}

// Before memory is asked for: the tables are there, as large as described, and there is room in
// the file for the blocks, each of at least 12·width² numbers.
void require_sizes(const Checkpoint& checkpoint, const nn::TransformerOptions& o,
                   const std::filesystem::path& path) {
  const auto check = [&](const std::string& name, const Shape& shape) {
    const Tensor* t = checkpoint.find("model." + name);
    const bool ok = t != nullptr && t->shape() == shape;
    const auto got = t == nullptr ? Shape{} : t->shape();
    require(ok, Kind::format, "load_model",
            text(path.string(), " has other weights than it describes: ", name), got, shape);
  };
  check("tok.weight", {o.vocabulary, o.width});
  if (o.positions == nn::Positions::learned) check("pos.weight", {o.context, o.width});
  check("blocks." + std::to_string(o.layers - 1) + ".norm1.weight", {o.width});
  std::int64_t there = 0;
  for (const auto& [name, t] : checkpoint.tensors) there += t.numel();
  const auto layers = static_cast<double>(o.layers), width = static_cast<double>(o.width);
  const bool room = o.layers <= static_cast<std::int64_t>(checkpoint.tensors.size()) &&
                    12 * layers * width * width <= static_cast<double>(there);
  require(room, Kind::format, "load_model",
          text(path.string(), " has other weights than it describes"),
          text(there, " numbers in ", checkpoint.tensors.size(), " tensors"),
          text("12 × width ", o.width, "² × layers ", o.layers, " at least"));
}

std::optional<Problems> problems_of(const Checkpoint& checkpoint,
                                    const std::filesystem::path& path) {
  const std::string task = example::described(checkpoint, "task", path, program);
  if (task == "text") return {};
  const std::string digits = example::described(checkpoint, "digits", path, program);
  const Skill skill = task == "sort" ? Skill::sort : Skill::addition;
  for (int n = 1; n <= Problems::most_digits(skill); ++n)
    if (digits == std::to_string(n)) return Problems{skill, n};
  raise(Kind::format, "load_model", path.string() + " was trained on unknown problems",
        task + " of " + digits + " digits", "addition or sort");
}

}  // namespace

std::string described(const nn::TransformerOptions& o) {
  const bool rotary = o.positions == nn::Positions::rotary;
  const bool swiglu = o.feed_forward == nn::FeedForwardKind::swiglu;
  return Json{{"vocabulary", o.vocabulary},
              {"context", o.context},
              {"layers", o.layers},
              {"heads", o.heads},
              {"width", o.width},
              {"positions", rotary ? "rotary" : "learned"},
              {"feed_forward", swiglu ? "swiglu" : "gelu"},
              {"norm", o.norm == nn::Norm::rms ? "rms" : "layer"}}
      .dump();
}

Loaded load_model(const std::filesystem::path& path, Device device) {
  const Checkpoint checkpoint = example::load_checkpoint(path, checkpoint_format, program);
  const auto options = parse(example::described(checkpoint, "model", path, program), path);
  require_sizes(checkpoint, options, path);
  Vocabulary vocabulary(
      code_points(example::described(checkpoint, "vocabulary", path, program), "the vocabulary"));
  require(vocabulary.size() <= options.vocabulary, Kind::format, "load_model",
          text(path.string(), " has more characters than its net"), vocabulary.size(),
          text("at most ", options.vocabulary));
  auto model = std::make_unique<nn::Transformer>(options);
  nn::NamedTensors weights = example::weights(checkpoint, path);
  for (auto& [name, w] : weights) w = w.to(Dtype::f32);
  model->load_state(weights);
  model->to(device);
  model->eval();
  return {std::move(vocabulary), problems_of(checkpoint, path), std::move(model)};
}

}  // namespace transformer

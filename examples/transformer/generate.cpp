// Continues a text, or answers a problem, with a model that train_transformer made.
#include "common/exit.h"
#include "common/flags.h"
#include "common/output.h"
#include "common/plot.h"
#include "transformer/model.h"
#include "transformer/sampler.h"

namespace {

using namespace transformer;
using example::put;

struct Options {
  std::string checkpoint = "out/addition/checkpoint.safetensors";
  std::string prompt;
  std::string device = "auto";
  std::string attention;
  std::int64_t count = 500;
  std::int64_t seed = 0;
  Sampling sampling;
  bool stream = false;
};

bool parse(int argc, char** argv, Options& o) {
  example::Flags flags("generate", "Continues a text, or answers a problem such as 12+7.");
  flags.text("--checkpoint", o.checkpoint, "what train_transformer wrote");
  flags.text("--prompt", o.prompt, "what comes first (default: a new line)");
  flags.whole("--max-new-tokens", o.count, 1, 1000000000, "characters to add");
  flags.real("--temperature", o.sampling.temperature, example::not_negative,
             "below 1 for the likely, above it for the daring; 0: always the likeliest");
  flags.whole("--top-k", o.sampling.top_k, 0, 1 << 30, "only among that many; 0: all");
  flags.whole("--seed", o.seed, 0, 1000000000, "of the choices");
  flags.toggle("--stream", o.stream, "show each character as soon as it is there");
  flags.text("--attention", o.attention,
             "PNG of what the last layer's heads look at in the prompt");
  flags.device(o.device);
  return flags.parse(argc, argv);
}

Tokens prompt_of(const Loaded& loaded, const Options& o) {
  if (loaded.problems) return question(*loaded.problems, o.prompt);
  const std::string first = o.prompt.empty() ? "\n" : o.prompt;
  return loaded.vocabulary.encode(code_points(first, "the prompt"), "the prompt");
}

void draw_attention(const Loaded& loaded, const Tokens& prompt, ebb::Device device,
                    const std::string& path) {
  const auto n = static_cast<std::int64_t>(prompt.size());
  const ebb::Tensor maps = loaded.model->attention_maps(ebb::tensor(prompt, {1, n}, device));
  const auto values = maps.to(ebb::Dtype::f32).to_vector<float>();
  std::vector<example::HeatMap> heads;
  for (std::int64_t h = 0; h < maps.size(1); ++h) {
    const auto first = values.begin() + h * n * n;
    example::HeatMap map{"head " + std::to_string(h + 1), {}, {first, first + n * n}};
    for (const std::int32_t token : prompt) map.labels.push_back(loaded.vocabulary.decode(token));
    heads.push_back(std::move(map));
  }
  example::write_heat_maps(path, heads, "each row looks at its columns");
}

void answer(const Loaded& loaded, const Tokens& prompt, const Options& o) {
  Tokens answer;
  Sampling greedy{.temperature = 0, .known = loaded.vocabulary.size()};
  generate(*loaded.model, prompt, loaded.problems->answer(), greedy,
           [&](std::int32_t token) { answer.push_back(token); });
  const char* sign = loaded.problems->skill == Skill::addition ? "=" : ">";
  const std::string asked = o.prompt.ends_with(*sign) ? o.prompt : o.prompt + sign;
  put(asked + readable(*loaded.problems, answer) + "\n", true);
}

void continue_text(const Loaded& loaded, const Tokens& prompt, const Options& o) {
  Sampling sampling = o.sampling;
  sampling.seed = static_cast<std::uint64_t>(o.seed);
  sampling.known = loaded.vocabulary.size();
  put(loaded.vocabulary.decode(prompt), o.stream);
  generate(*loaded.model, prompt, o.count, sampling,
           [&](std::int32_t token) { put(loaded.vocabulary.decode(token), o.stream); });
  put("\n", true);
}

int body(int argc, char** argv) {
  Options o;
  if (!parse(argc, argv, o)) return example::exit_code::ok;
  const ebb::Device device = example::choose_device(o.device);
  const Loaded loaded = load_model(o.checkpoint, device);
  const Tokens prompt = prompt_of(loaded, o);
  const std::int64_t context = loaded.model->options().context;
  ebb::require(static_cast<std::int64_t>(prompt.size()) <= context, ebb::Kind::value, "generate",
               "the prompt is too long", ebb::text(prompt.size(), " tokens"),
               ebb::text("at most ", context));
  if (!o.attention.empty()) draw_attention(loaded, prompt, device, o.attention);
  if (loaded.problems)
    answer(loaded, prompt, o);
  else
    continue_text(loaded, prompt, o);
  return example::exit_code::ok;
}

}  // namespace

int main(int argc, char** argv) { return example::run(argc, argv, body); }

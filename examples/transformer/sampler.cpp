#include "transformer/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "ebb/core/random.h"
#include "transformer/problems.h"

namespace transformer {

using namespace ebb;

namespace {

constexpr std::uint64_t sampling_stream = std::uint64_t{1} << 43;

// The likeliest first; of equal ones the first.
Tokens by_likelihood(const std::vector<float>& logits, std::int64_t known, std::int64_t wanted) {
  Tokens order(static_cast<size_t>(known));
  std::iota(order.begin(), order.end(), 0);
  const auto likelier = [&](std::int32_t a, std::int32_t b) {
    const float x = logits[static_cast<size_t>(a)], y = logits[static_cast<size_t>(b)];
    return x != y ? x > y : a < b;
  };
  const auto n = static_cast<std::ptrdiff_t>(wanted);
  std::partial_sort(order.begin(), order.begin() + n, order.end(), likelier);
  order.resize(static_cast<size_t>(n));
  return order;
}

std::vector<float> next(nn::Transformer& model, const Tokens& tokens,
                        nn::Transformer::Cache& cache) {
  const Device device = model.tok.weight.device();
  const Tensor x = tensor(tokens, {1, static_cast<std::int64_t>(tokens.size())}, device);
  return model.next_logits(x, cache).to(Dtype::f32).to_vector<float>();
}

}  // namespace

std::int32_t choose(const std::vector<float>& logits, const Sampling& sampling,
                    std::uint64_t place) {
  const std::int64_t known = sampling.known;
  const std::int64_t among = sampling.top_k > 0 ? std::min(sampling.top_k, known) : known;
  const Tokens order = by_likelihood(logits, known, sampling.temperature > 0 ? among : 1);
  const auto at = [&](size_t i) {
    return static_cast<double>(logits[static_cast<size_t>(order[i])]);
  };
  std::vector<double> sums(order.size());
  double sum = 0;
  for (size_t i = 0; i < order.size(); ++i)
    sums[i] = sum += i == 0 ? 1 : std::exp((at(i) - at(0)) / sampling.temperature);
  const std::uint64_t random = wide(philox(sampling.seed, place, sampling_stream));
  const double drawn = static_cast<double>(random >> 11) * 0x1p-53 * sum;
  const auto found = std::upper_bound(sums.begin(), sums.end() - 1, drawn);
  return order[static_cast<size_t>(found - sums.begin())];
}

void generate(nn::Transformer& model, const Tokens& prompt, std::int64_t count,
              const Sampling& sampling, const std::function<void(std::int32_t)>& tell) {
  const std::int64_t context = model.options().context;
  const auto length = static_cast<std::int64_t>(prompt.size());
  require(1 <= length && length <= context, Kind::value, "generate", "the prompt is too long",
          text(length, " tokens"), text("1 to ", context));
  Tokens all = prompt;
  Tokens unread = prompt;
  nn::Transformer::Cache cache;
  std::int64_t read = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    if (read == context) {
      unread.assign(all.end() - (context + 1) / 2, all.end());
      cache.clear();
      read = 0;
    }
    read += static_cast<std::int64_t>(unread.size());
    const auto token = choose(next(model, unread, cache), sampling, static_cast<std::uint64_t>(i));
    tell(token);
    all.push_back(token);
    unread = {token};
  }
}

}  // namespace transformer

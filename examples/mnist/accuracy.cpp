#include "mnist/accuracy.h"

#include <algorithm>

namespace mnist {

using namespace ebb;

namespace {

constexpr std::int64_t evaluation_batch = 1000;

Tensor in_order(const DeviceDigits& digits) {
  std::vector<std::int32_t> order(static_cast<size_t>(digits.labels.numel()));
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::int32_t>(i);
  return tensor(order, {digits.labels.numel()}, digits.labels.device());
}

}  // namespace

std::int64_t correct(const Tensor& logits, const Tensor& labels) {
  const auto scores = logits.to_vector<float>();
  const auto truth = labels.to_vector<std::int32_t>();
  std::int64_t count = 0;
  for (size_t i = 0; i < truth.size(); ++i) {
    const auto* row = scores.data() + i * classes;
    count += std::max_element(row, row + classes) - row == truth[i];
  }
  return count;
}

double accuracy(nn::Module& model, const DeviceDigits& digits) {
  const NoGrad guard;
  const bool training = model.training();
  model.eval();
  const Tensor order = in_order(digits);
  const std::int64_t n = order.numel();
  std::int64_t right = 0;
  for (std::int64_t i = 0; i < n; i += evaluation_batch) {
    const Batch batch = make_batch(digits, order, i, std::min(evaluation_batch, n - i), {});
    right += correct(model(batch.x), batch.labels);
  }
  model.train(training);
  return static_cast<double>(right) / static_cast<double>(n);
}

}  // namespace mnist

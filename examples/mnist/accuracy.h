// How often a net is right.
#pragma once
#include <cstdint>

#include "ebb/ebb.h"
#include "mnist/batch.h"

namespace mnist {

// How many rows of logits [N,10] are largest at their label.
std::int64_t correct(const ebb::Tensor& logits, const ebb::Tensor& labels);

// Share of digits whose largest logit is their label's; of equal ones the first counts.
double accuracy(ebb::nn::Module& model, const DeviceDigits& digits);

}  // namespace mnist

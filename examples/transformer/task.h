// What there is to learn: where batches come from, and how good a model is at it.
#pragma once
#include <memory>
#include <string>

#include "transformer/batch.h"
#include "transformer/config.h"
#include "transformer/text.h"

namespace transformer {

class Task {
 public:
  virtual ~Task() = default;
  virtual const Vocabulary& vocabulary() const = 0;
  virtual std::int64_t context() const = 0;
  virtual Batch batch(Rows rows) const = 0;

  // Of what was never trained on: nats a token over the whole validation part, in windows one after
  // another, or the percentage of unseen problems whose answer is right in every token. The model
  // sees the true answer's beginning, but as one wrong token makes it wrong, that is the percentage
  // that greedy decoding gets right.
  virtual double measure(ebb::nn::Module& model) const = 0;
  virtual bool better(double a, double b) const = 0;
  virtual std::string key() const = 0;                  // "validation_loss"
  virtual std::string line(double measured) const = 0;  // "validation loss 1.8812"
  virtual std::string about() const = 0;
  virtual example::Description description() const = 0;
};

// Data goes to the device. Errors as load_text(), and `value` for one shorter than a context.
std::unique_ptr<Task> make_task(const Config& config, const std::string& text_path,
                                ebb::Device device);

}  // namespace transformer

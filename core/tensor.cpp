#include "ebb/core/tensor.h"

#include <cmath>

#include "ebb/core/autograd.h"
#include "ebb/core/basic.h"
#include "ebb/core/error.h"
#include "ebb/core/run.h"

namespace ebb {

Tensor::Tensor(std::shared_ptr<Storage> storage, const Shape& shape, Dtype dtype)
    : impl_(std::make_shared<TensorImpl>(std::move(storage), shape, dtype)) {
  require(bytes() <= impl_->storage->bytes(), Kind::shape, "tensor", "shape too large for storage",
          text(bytes(), " bytes for ", shape), text("at most ", impl_->storage->bytes()));
}

namespace {

// fill and convert know every dtype on the CPU, so they are not widened.
template <auto Cpu, auto Gpu, class... Args>
void run_any(Device device, Args&&... arguments) {
  if (device.is_cuda()) {
    run<Cpu, Gpu>(device, arguments...);
  } else {
    Cpu(arguments...);
  }
}

const TensorImpl& checked(const std::shared_ptr<TensorImpl>& impl) {
  require(impl != nullptr, Kind::state, "tensor", "undefined tensor used", "no elements",
          "a tensor made by empty(), tensor() or an op");
  return *impl;
}

}  // namespace

const Shape& Tensor::shape() const { return checked(impl_).shape; }
Dtype Tensor::dtype() const { return checked(impl_).dtype; }
Device Tensor::device() const { return checked(impl_).storage->device(); }
const std::shared_ptr<Storage>& Tensor::storage() const { return checked(impl_).storage; }
const std::shared_ptr<Node>& Tensor::node() const { return checked(impl_).node; }
void Tensor::set_node(std::shared_ptr<Node> node) {
  checked(impl_);
  impl_->node = std::move(node);
}

std::int64_t Tensor::size(std::int64_t dim) const {
  require(rank() > 0, Kind::index, "size", "a scalar has no dimensions", dim, "rank 1 or more");
  return shape()[wrap_dim("size", dim, rank())];
}

void* Tensor::raw() { return storage()->data(); }
const void* Tensor::raw() const { return storage()->data(); }

void* Tensor::raw(Dtype expected) const {
  require(dtype() == expected, Kind::dtype, "data", "wrong element type", expected, dtype());
  return impl_->storage->data();
}

void Tensor::copy_out(Dtype expected, void* values) const {
  require(dtype() == expected, Kind::dtype, "to_vector", "wrong element type", expected, dtype());
  copy_bytes(values, cpu_device, raw(), device(), bytes());
}

double Tensor::item() const {
  require(numel() == 1, Kind::shape, "item", "not a single value",
          text(numel(), " elements in ", shape()), "1 element");
  return to(Dtype::f64).to_vector<double>()[0];
}

bool Tensor::requires_grad() const {
  return impl_ && (impl_->requires_grad || impl_->node != nullptr);
}

Tensor& Tensor::set_requires_grad(bool on) {
  require(!on || is_floating(dtype()), Kind::dtype, "requires_grad", "integers have no gradient",
          dtype(), "f32, f64 or bf16");
  require(!impl_->node, Kind::state, "requires_grad", "only leaves can be switched",
          "the result of an op", "a leaf, or its detach()");
  impl_->requires_grad = on;
  return *this;
}

Tensor Tensor::grad() const { return checked(impl_).grad; }

void Tensor::set_grad(Tensor gradient) {
  if (gradient.defined()) {
    const bool sum = dtype() == Dtype::bf16 && gradient.dtype() == Dtype::f32;
    require(gradient.shape() == shape() && (sum || gradient.dtype() == dtype()) &&
                gradient.device() == device(),
            Kind::state, "set_grad", "gradient does not fit its tensor", gradient, *this);
  }
  require(!checked(impl_).node || !gradient.defined(), Kind::state, "set_grad",
          "only leaves have gradients", "the result of an op", "a leaf, or its detach()");
  // With its history it could lead back to this tensor, and neither would ever be freed.
  impl_->grad = gradient.requires_grad() ? gradient.detach() : std::move(gradient);
}

void Tensor::zero_grad() { set_grad({}); }

void Tensor::backward(const Tensor& dy, bool retain_graph) const {
  ebb::backward(*this, dy, {.retain_graph = retain_graph});
}

Tensor Tensor::detach() const { return Tensor(storage(), shape(), dtype()); }

Tensor Tensor::clone() const {
  Tensor y = empty_like(*this);
  copy_bytes(y.raw(), y.device(), raw(), device(), bytes());
  return record("clone", y, {*this}, [](const Tensor& dy) -> Gradients { return {dy}; });
}

Tensor Tensor::to(Device target) const {
  if (target == device()) return *this;
  Tensor y = empty(shape(), {dtype(), target});
  copy_bytes(y.raw(), target, raw(), device(), bytes());
  const auto back = [from = device()](const Tensor& dy) -> Gradients { return {dy.to(from)}; };
  return record("to", y, {*this}, back);
}

Tensor Tensor::to(Dtype target) const {
  if (target == dtype()) return *this;
  Tensor y = empty(shape(), {target, device()});
  if (numel()) run_any<cpu::convert, gpu::convert>(device(), *this, y);
  if (!is_floating(target)) return y;
  const auto back = [from = dtype()](const Tensor& dy) -> Gradients { return {dy.to(from)}; };
  return record("to", y, {*this}, back);
}

void Tensor::move_to(Device target) {
  checked(impl_);
  require(!impl_->node, Kind::state, "move_to", "only leaves can be moved", "the result of an op",
          "a leaf; use to(device)");
  const Tensor there = to(target);
  if (impl_->grad.defined()) impl_->grad = impl_->grad.to(target);
  impl_->storage = there.storage();
}

void Tensor::convert_to(Dtype target) {
  checked(impl_);
  require(!impl_->node, Kind::state, "convert_to", "only leaves can be converted",
          "the result of an op", "a leaf; use to(dtype)");
  require(!impl_->requires_grad || is_floating(target), Kind::dtype, "convert_to",
          "integers have no gradient", target, "f32, f64 or bf16");
  const Tensor there = to(target);
  if (impl_->grad.defined()) impl_->grad = impl_->grad.to(target);
  impl_->storage = there.storage();
  impl_->dtype = target;
}

void Tensor::require_writable(std::string_view op) const {
  checked(impl_);
  require(!(requires_grad() && grad_enabled()), Kind::state, op,
          "a tensor that requires a gradient cannot be changed in place",
          impl_->node ? "the result of an op" : "a leaf", "NoGrad to be active");
}

std::uint64_t Tensor::version() const { return storage()->version(); }
void Tensor::bump_version() { storage()->bump_version(); }

Tensor& Tensor::fill_(double value) {
  require_writable("fill_");
  const bool small = dtype() == Dtype::u8;
  const bool fits = value == std::trunc(value) && (small ? 0 : -0x1p31) <= value &&
                    value < (small ? 256 : 0x1p31);
  require(is_floating(dtype()) || fits, Kind::value, "fill_", "not a number of the element type",
          value, dtype());
  if (numel()) run_any<cpu::fill, gpu::fill>(device(), value, *this);
  bump_version();
  return *this;
}

Tensor& Tensor::copy_(const Tensor& source) {
  require_writable("copy_");
  require(!(source.requires_grad() && grad_enabled()), Kind::state, "copy_",
          "no gradient would flow back to the source", "one that requires it",
          "its detach(), or NoGrad to be active");
  require(source.shape() == shape(), Kind::shape, "copy_", "shapes differ", source.shape(),
          shape());
  const Tensor here = source.to(dtype()).to(device());
  copy_bytes(raw(), device(), here.raw(), device(), bytes());
  bump_version();
  return *this;
}

Tensor empty(const Shape& shape, TensorOptions options) {
  const std::int64_t bytes = checked_bytes("empty", shape, size_of(options.dtype));
  return {std::make_shared<Storage>("empty", bytes, options.device), shape, options.dtype};
}

Tensor full(const Shape& shape, double value, TensorOptions options) {
  Tensor y = empty(shape, options);
  y.fill_(value);
  return y;
}

Tensor zeros(const Shape& shape, TensorOptions options) { return full(shape, 0, options); }
Tensor ones(const Shape& shape, TensorOptions options) { return full(shape, 1, options); }
Tensor empty_like(const Tensor& x) { return empty(x.shape(), x.options()); }
Tensor zeros_like(const Tensor& x) { return zeros(x.shape(), x.options()); }
Tensor ones_like(const Tensor& x) { return ones(x.shape(), x.options()); }

Tensor tensor_from(std::span<const std::byte> bytes, const Shape& shape, TensorOptions options) {
  const std::int64_t element = size_of(options.dtype);
  require(static_cast<std::int64_t>(bytes.size()) == checked_bytes("tensor", shape, element),
          Kind::shape, "tensor", text("wrong number of values for ", shape),
          text(bytes.size() / static_cast<size_t>(element), " values"),
          text(shape.numel(), " values"));
  Tensor y = empty(shape, options);
  copy_bytes(y.raw(), options.device, bytes.data(), cpu_device, y.bytes());
  return y;
}

std::ostream& operator<<(std::ostream& out, const Tensor& x) {
  if (!x.defined()) return out << "undefined";
  return out << x.dtype() << ' ' << x.shape() << ' ' << x.device();
}

}  // namespace ebb

// Tensor: a cheap handle on contiguous, row-major elements of one dtype on one device.
//
// Copying a handle shares the elements. reshape() and detach() share them too; everything else
// makes new ones. Constness is that of the elements: kernels take `const Tensor&` to read and
// `Tensor&` to write.
#pragma once
#include <memory>
#include <span>
#include <vector>

#include "ebb/core/device.h"
#include "ebb/core/dtype.h"
#include "ebb/core/shape.h"
#include "ebb/core/storage.h"

namespace ebb {

struct Node;        // one recorded operation: core/autograd.h
struct TensorImpl;  // below

struct TensorOptions {
  Dtype dtype = Dtype::f32;
  Device device = cpu_device;
};

class Tensor {
 public:
  Tensor() = default;  // undefined: stands for "absent", as an optional input or gradient
  bool defined() const { return impl_ != nullptr; }

  const Shape& shape() const;
  int rank() const { return shape().rank(); }
  std::int64_t size(std::int64_t dim) const;  // -1 is the last; error `index`
  std::int64_t numel() const { return shape().numel(); }
  std::int64_t bytes() const { return numel() * size_of(dtype()); }
  Dtype dtype() const;
  Device device() const;
  TensorOptions options() const { return {dtype(), device()}; }

  // Error `dtype` unless T is the element type. Writing through the pointer does not change
  // version(): call bump_version() after writing to elements that a graph may have saved.
  template <class T>
  T* data() {
    return static_cast<T*>(raw(dtype_of<T>));
  }
  template <class T>
  const T* data() const {
    return static_cast<const T*>(raw(dtype_of<T>));
  }
  void* raw();
  const void* raw() const;

  // Copies out; error `dtype` unless T is the element type.
  template <class T>
  std::vector<T> to_vector() const {
    std::vector<T> values(static_cast<size_t>(numel()));
    copy_out(dtype_of<T>, values.data());
    return values;
  }
  double item() const;  // of a one-element tensor of any dtype; error `shape`; waits for the device

  // Gradients (core/autograd.h).
  bool requires_grad() const;
  Tensor& set_requires_grad(bool on);  // error `dtype` for integers, `state` for results of ops
  Tensor grad() const;  // undefined when there is none; f32 when several bf16 ones were added up
  // Error `state` unless shape, dtype and device agree, and for results of ops.
  void set_grad(Tensor gradient);
  void zero_grad();  // drops the gradient
  void backward(const Tensor& dy = {}, bool retain_graph = false) const;
  [[nodiscard]] Tensor detach() const;  // same elements, no history

  // Copies, through which gradients flow. to() returns this tensor when nothing changes.
  // Floating numbers become integers towards zero, the nearest that there is, NaN 0.
  [[nodiscard]] Tensor clone() const;
  [[nodiscard]] Tensor to(Device device) const;
  [[nodiscard]] Tensor to(Dtype dtype) const;
  void move_to(Device device);   // this handle and every copy of it; for parameters
  void convert_to(Dtype dtype);  // the same, with the gradient

  // In place. Error `state` where that would lose a gradient: on a tensor that requires one, and
  // from a source that does, unless NoGrad is active.
  Tensor& fill_(double value);          // error `value`: not a number of an integer type
  Tensor& copy_(const Tensor& source);  // any device and dtype; error `shape` unless equal
  std::uint64_t version() const;
  void bump_version();  // for kernels that write into tensors that others hold
  void require_writable(std::string_view op) const;

  // For the engine and for ops that share storage.
  Tensor(std::shared_ptr<Storage> storage, const Shape& shape, Dtype dtype);
  const std::shared_ptr<Storage>& storage() const;
  const std::shared_ptr<Node>& node() const;
  void set_node(std::shared_ptr<Node> node);
  const std::shared_ptr<TensorImpl>& impl() const { return impl_; }
  explicit Tensor(std::shared_ptr<TensorImpl> impl) : impl_(std::move(impl)) {}
  bool same_as(const Tensor& other) const { return impl_ == other.impl_; }

 private:
  void* raw(Dtype expected) const;
  void copy_out(Dtype expected, void* values) const;
  std::shared_ptr<TensorImpl> impl_;
};

using Tensors = std::vector<Tensor>;

struct TensorImpl {
  std::shared_ptr<Storage> storage;
  Shape shape;
  Dtype dtype = Dtype::f32;
  bool requires_grad = false;  // of a leaf
  Tensor grad;                 // of a leaf
  std::shared_ptr<Node> node;  // of a result

  TensorImpl(std::shared_ptr<Storage> storage, const Shape& shape, Dtype dtype);
  ~TensorImpl();
};

// New tensors. Errors: `shape`, `limit`, `oom`, `device`.
Tensor empty(const Shape& shape, TensorOptions options = {});  // elements are unspecified
Tensor zeros(const Shape& shape, TensorOptions options = {});
Tensor ones(const Shape& shape, TensorOptions options = {});
Tensor full(const Shape& shape, double value, TensorOptions options = {});
Tensor empty_like(const Tensor& x);
Tensor zeros_like(const Tensor& x);
Tensor ones_like(const Tensor& x);

// Copies `values` in; error `shape` unless there are as many as the shape has elements.
//   tensor<float>({1, 2, 3, 4}, {2, 2})
Tensor tensor_from(std::span<const std::byte> bytes, const Shape& shape, TensorOptions options);
template <class T>
Tensor tensor(const std::vector<T>& values, const Shape& shape, Device device = cpu_device) {
  return tensor_from(std::as_bytes(std::span(values)), shape, {dtype_of<T>, device});
}

std::ostream& operator<<(std::ostream& out, const Tensor& x);  // f32 [2,3] cpu

}  // namespace ebb

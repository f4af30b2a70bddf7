// Internal: not in <ebb/ebb.h>, not installed.
// The only include of Eigen: views of tensors as arrays and matrices, and SIMD packets.
#pragma once
#define EIGEN_DONT_PARALLELIZE  // threads are core/parallel.h's
#define EIGEN_FAST_MATH 0       // square roots are exact, also of denormals
#include <Eigen/Core>

#include "ebb/core/tensor.h"

namespace ebb::cpu {

template <class T>
using Array = Eigen::Array<T, Eigen::Dynamic, 1>;
template <class T>
using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// n elements from p on.
template <class T>
Eigen::Map<const Array<T>> array(const T* p, std::int64_t n) {
  return {p, n};
}
template <class T>
Eigen::Map<Array<T>> array(T* p, std::int64_t n) {
  return {p, n};
}

// rows × cols elements from p on, row-major.
template <class T>
Eigen::Map<const Matrix<T>> matrix(const T* p, std::int64_t rows, std::int64_t cols) {
  return {p, rows, cols};
}
template <class T>
Eigen::Map<Matrix<T>> matrix(T* p, std::int64_t rows, std::int64_t cols) {
  return {p, rows, cols};
}

// The widest SIMD register of T that this build may use: load with ploadu<Packet<T>>, …
template <class T>
using Packet = typename Eigen::internal::packet_traits<T>::type;
template <class T>
inline constexpr int lanes = Eigen::internal::unpacket_traits<Packet<T>>::size;

}  // namespace ebb::cpu

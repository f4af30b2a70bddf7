#include "ebb/core/cuda.cuh"
#include "ebb/core/graph.h"

namespace ebb::gpu {
namespace {

__global__ void set_kernel(std::uint64_t* shift, std::uint64_t value) { *shift = value; }
__global__ void add_kernel(std::uint64_t* shift, std::uint64_t draws) { *shift += draws; }

}  // namespace

// Relaxed: memory that the pool does not have yet may still be asked for.
void begin_capture() {
  check(cudaStreamBeginCapture(stream(), cudaStreamCaptureModeRelaxed), "graph");
}

bool capturing() {
  cudaStreamCaptureStatus status{};
  check(cudaStreamIsCapturing(stream(), &status), "graph");
  return status != cudaStreamCaptureStatusNone;
}

void* end_capture(std::uint64_t* shift, std::uint64_t draws) {
  launch("graph", add_kernel, 1, 1, 0, shift, draws);
  cudaGraph_t graph = nullptr;
  check(cudaStreamEndCapture(stream(), &graph), "graph");
  cudaGraphExec_t replay = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&replay, graph, 0);
  cudaGraphDestroy(graph);
  check(status, "graph");
  return replay;
}

void set_shift(std::uint64_t* shift, std::uint64_t value) {
  launch("graph", set_kernel, 1, 1, 0, shift, value);
}

void abandon_capture() {
  cudaGraph_t graph = nullptr;
  cudaStreamEndCapture(stream(), &graph);
  if (graph) cudaGraphDestroy(graph);
  cudaGetLastError();
}

void replay(void* graph) {
  check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), stream()), "graph");
}

void destroy_replay(void* graph) { cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph)); }

}  // namespace ebb::gpu

// Host side that every CUDA operation shares: is there a driver, do the tensors lie on one device, did the launch go out.
// Nothing here synchronises or allocates, so every call can be captured in a graph.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "common/view.h"

namespace seedthink::cuda {

inline void require(cudaError_t status, const char* operation, const char* what) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string(operation) + " on CUDA: " + what + ": " + cudaGetErrorString(status));
}

// One call: checks the driver and the tensors, and reports a failed launch. The caller has made the tensors' device the
// current one: this library has a CUDA runtime of its own, and only torch can put torch's device back.
class DeviceCall {
 public:
  DeviceCall(const char* operation, const View& first, int64_t stream)
      : stream(reinterpret_cast<cudaStream_t>(stream)), operation_(operation), device_(first.device) {
    static const int devices = [&] {  // asked again only after it failed
      int count = 0;
      require(cudaGetDeviceCount(&count), operation, "no usable CUDA driver (check nvidia-smi)");
      if (count == 0) throw std::runtime_error(std::string(operation) + " on CUDA: no device (check nvidia-smi)");
      return count;
    }();
    static_cast<void>(devices);
    ST_CHECK(first.cuda, operation, ": expected CUDA tensors");
  }

  // View::check for a tensor on this call's device.
  void check(const View& view, const char* what, Dtype dtype, std::initializer_list<int64_t> sizes) const {
    ST_CHECK(view.cuda, what, ": expected a CUDA tensor");
    ST_CHECK(view.device == device_, what, ": lies on device ", view.device, ", the first tensor on ", device_);
    View same = view;
    same.cuda = false;
    same.check(what, dtype, sizes);
  }

  // Whether the device has clusters, and launches that start before the one in front of them has ended. Only there does
  // the code for sm_90a run; what runs on later devices does not wait for the launch before it.
  bool hopper() const {
    int major = 0;
    require(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device_), operation_, "no such device");
    return major == 9;
  }

  // A launch with one attribute more than <<< >>> has.
  template <typename... Arguments>
  void launch_with(const cudaLaunchAttribute& attribute, unsigned blocks, unsigned threads, void (*kernel)(Arguments...),
                   const Arguments&... arguments) const {
    cudaLaunchAttribute attributes[] = {attribute};
    cudaLaunchConfig_t config{};
    config.gridDim = blocks;
    config.blockDim = threads;
    config.stream = stream;
    config.attrs = attributes;
    config.numAttrs = 1;
    require(cudaLaunchKernelEx(&config, kernel, arguments...), operation_, "launch failed");
  }
  void launched() const { require(cudaGetLastError(), operation_, "launch failed"); }

  const cudaStream_t stream;

 private:
  const char* operation_;
  int device_;
};

// Lets a launch start before the one in front of it has ended; it waits in its own code (await_kernel_before).
inline cudaLaunchAttribute early_start() {
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  return early;
}

inline int64_t padded(int64_t bytes) { return (bytes + 255) / 256 * 256; }
inline unsigned blocks_for(int64_t count, int64_t each) { return static_cast<unsigned>((count + each - 1) / each); }

// Whether rows of `bytes` bytes from `pointer` on can be read in steps of `step` bytes.
inline bool aligned(const View& view, int64_t bytes, int64_t step) {
  return bytes % step == 0 && reinterpret_cast<uintptr_t>(view.pointer) % static_cast<uintptr_t>(step) == 0;
}

}  // namespace seedthink::cuda

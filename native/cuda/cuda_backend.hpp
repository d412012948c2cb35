// The backend on a CUDA device.
#pragma once

#include <memory>

#include "backend.hpp"

namespace reloc::device {

/// Number of CUDA devices; throws std::runtime_error if the driver cannot be used.
int cuda_device_count();

/// A backend for the length of a scope. Backends are kept for later calls with their memory and
/// stream, one for each that was in use at the same time.
class CudaLease {
  public:
    /// Throws std::runtime_error if the device cannot be used.
    explicit CudaLease(int device);
    CudaLease(CudaLease&&) = default;
    ~CudaLease();
    Backend* get() const { return backend_.get(); }

  private:
    std::unique_ptr<Backend> backend_;
};

}  // namespace reloc::device

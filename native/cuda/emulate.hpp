// The backend on the host: the kernels' functions over emulated blocks. For tests.
#pragma once

#include <memory>

#include "backend.hpp"

namespace reloc::device {

/// `threads`: of a block. One runs the functions serially; more run them as a device does, with
/// barriers, so that a race detector sees what their threads share.
std::unique_ptr<Backend> make_emulation(int threads);

}  // namespace reloc::device

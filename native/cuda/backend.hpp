// Where the kernels run: a CUDA device, or its emulation on the host.
#pragma once

#include <cstddef>

#include "batch_arrays.hpp"
#include "search.hpp"

namespace reloc::device {

/// Memory and launches of one batch at a time. Calls are in order: each sees what the one before
/// left.
class Backend {
  public:
    /// Bytes of what the host sends, of work memory, and of what the host fetches.
    struct Buffers {
        char *input, *work, *output;
    };

    virtual ~Backend() = default;
    /// Makes room; buffers of an earlier, larger batch are kept.
    virtual void reserve(std::size_t input, std::size_t work, std::size_t output) = 0;
    /// Addresses on the device, and of input and output on the host.
    virtual Buffers device() = 0;
    virtual Buffers host() = 0;
    virtual void send(std::size_t offset, std::size_t bytes) = 0;
    /// Waits until all that was asked for is done and the bytes of the output are on the host.
    virtual void fetch(std::size_t offset, std::size_t bytes) = 0;
    virtual void search(const Arrays& arrays, const Round& round) = 0;
    virtual void fit(const Arrays& arrays, int queries) = 0;
};

}  // namespace reloc::device

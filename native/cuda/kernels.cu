#include <cuda_runtime.h>

#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda_backend.hpp"
#include "fit.hpp"

namespace reloc::device {
namespace {

constexpr int kProposeThreads = 64, kRankThreads = 128, kBlockThreads = 256;

// The functions behind these are those that the emulation runs.

__global__ void __launch_bounds__(kProposeThreads) propose_kernel(Arrays a, Round round) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= round.queries * round.chunks * kChunk) return;
    propose(a, round, i / kChunk / round.chunks, i / kChunk % round.chunks, i % kChunk);
}

__global__ void __launch_bounds__(kRankThreads) rank_kernel(Arrays a, Round round) {
    __shared__ RankShared shared;
    const Block block(threadIdx.x, blockDim.x, &shared.scratch, nullptr);
    const int b = blockIdx.x;
    rank_chunk(block, a, round, b / round.chunks, b % round.chunks, &shared);
}

__global__ void __launch_bounds__(kBlockThreads) advance_kernel(Arrays a, Round round) {
    __shared__ AdvanceShared shared;
    const Block block(threadIdx.x, blockDim.x, &shared.scratch, nullptr);
    advance(block, a, round, blockIdx.x, &shared);
}

__global__ void __launch_bounds__(kBlockThreads) fit_kernel(Arrays a) {
    __shared__ FitShared shared;
    const Block block(threadIdx.x, blockDim.x, &shared.scratch, nullptr);
    fit(block, a, blockIdx.x, &shared);
}

static_assert(sizeof(RankShared) <= 48 * 1024 && sizeof(AdvanceShared) <= 48 * 1024 &&
                  sizeof(FitShared) <= 48 * 1024,
              "static shared memory of a block is limited to 48 KiB");

void check(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return;
    cudaGetLastError();  // an error that can be cleared must not show up in a later call
    std::string message = std::string("CUDA: ") + what + " failed: " + cudaGetErrorString(error) +
                          " (" + cudaGetErrorName(error) + ")";
    if (error == cudaErrorMemoryAllocation)
        message += "; solve fewer or smaller problems at a time, or free memory of the device";
    if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorUnsupportedPtxVersion)
        message +=
            "; the module was built for other devices: build it with"
            " -DCMAKE_CUDA_ARCHITECTURES=native";
    throw std::runtime_error(message);
}

/// Device or page-locked host memory that only grows.
class Memory {
  public:
    explicit Memory(bool on_device) : on_device_(on_device) {}
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    ~Memory() { release(); }

    void reserve(std::size_t bytes) {
        if (bytes <= bytes_) return;
        release();
        const std::size_t rounded = bytes + bytes / 4;
        if (on_device_)
            check(cudaMalloc(&data_, rounded), "allocation of device memory");
        else
            check(cudaMallocHost(&data_, rounded), "allocation of page-locked memory");
        bytes_ = rounded;
    }
    char* data() const { return static_cast<char*>(data_); }

  private:
    void release() {
        if (!data_) return;
        if (on_device_)
            cudaFree(data_);
        else
            cudaFreeHost(data_);
        data_ = nullptr;
        bytes_ = 0;
    }
    bool on_device_;
    void* data_ = nullptr;
    std::size_t bytes_ = 0;
};

class CudaBackend : public Backend {
  public:
    explicit CudaBackend(int device) : device_(device) {
        select();
        check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creation of a stream");
    }
    ~CudaBackend() override {
        cudaSetDevice(device_);
        cudaStreamDestroy(stream_);
    }

    void reserve(std::size_t input, std::size_t work, std::size_t output) override {
        select();
        input_.reserve(input);
        host_input_.reserve(input);
        work_.reserve(work);
        output_.reserve(output);
        host_output_.reserve(output);
    }
    Buffers device() override { return {input_.data(), work_.data(), output_.data()}; }
    Buffers host() override { return {host_input_.data(), nullptr, host_output_.data()}; }

    void send(std::size_t offset, std::size_t bytes) override {
        check(cudaMemcpyAsync(input_.data() + offset, host_input_.data() + offset, bytes,
                              cudaMemcpyHostToDevice, stream_),
              "copy to the device");
    }
    void fetch(std::size_t offset, std::size_t bytes) override {
        check(cudaMemcpyAsync(host_output_.data() + offset, output_.data() + offset, bytes,
                              cudaMemcpyDeviceToHost, stream_),
              "copy from the device");
        check(cudaStreamSynchronize(stream_), "a kernel of the pose solver");
    }

    void search(const Arrays& a, const Round& round) override {
        const int chunks = round.queries * round.chunks, samples = chunks * kChunk;
        propose_kernel<<<(samples + kProposeThreads - 1) / kProposeThreads, kProposeThreads, 0,
                         stream_>>>(a, round);
        rank_kernel<<<chunks, kRankThreads, 0, stream_>>>(a, round);
        advance_kernel<<<round.queries, kBlockThreads, 0, stream_>>>(a, round);
        check(cudaGetLastError(), "launch of the search");
    }
    void fit(const Arrays& a, int queries) override {
        fit_kernel<<<queries, kBlockThreads, 0, stream_>>>(a);
        check(cudaGetLastError(), "launch of the fit");
    }

    /// Makes the device current for the calling thread.
    void select() const { check(cudaSetDevice(device_), "selection of the device"); }
    /// Waits for what an exception may have left under way; false if the device is lost.
    bool idle() const { return cudaStreamSynchronize(stream_) == cudaSuccess; }
    int device_index() const { return device_; }

  private:
    int device_;
    cudaStream_t stream_ = nullptr;
    Memory input_{true}, work_{true}, output_{true}, host_input_{false}, host_output_{false};
};

/// Backends that wait for the next call, so that memory is allocated once.
class Pool {
  public:
    std::unique_ptr<CudaBackend> take(int device) {
        {
            const std::lock_guard<std::mutex> guard(lock_);
            for (auto& entry : idle_) {
                if (entry->device_index() != device) continue;
                std::unique_ptr<CudaBackend> out = std::move(entry);
                entry = std::move(idle_.back());
                idle_.pop_back();
                return out;
            }
        }
        return std::make_unique<CudaBackend>(device);
    }
    void give(std::unique_ptr<CudaBackend> backend) {
        if (!backend->idle()) return;
        const std::lock_guard<std::mutex> guard(lock_);
        idle_.push_back(std::move(backend));
    }

  private:
    std::mutex lock_;
    std::vector<std::unique_ptr<CudaBackend>> idle_;
};

/// Never destroyed: the driver may be gone by the time static objects are.
Pool& pool() {
    static Pool* const instance = new Pool;
    return *instance;
}

}  // namespace

// Only emulated blocks have a barrier of their own.
void wait_at_barrier(void*) {}

int cuda_device_count() {
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaErrorNoDevice) return 0;
    check(error, "search for devices");
    return count;
}

CudaLease::CudaLease(int device) : backend_(pool().take(device)) {}

CudaLease::~CudaLease() {
    if (backend_)
        pool().give(std::unique_ptr<CudaBackend>(static_cast<CudaBackend*>(backend_.release())));
}

}  // namespace reloc::device

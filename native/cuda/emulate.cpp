#include "emulate.hpp"

#include <pthread.h>

#include <cstring>
#include <thread>
#include <vector>

#include "fit.hpp"

namespace reloc::device {

void wait_at_barrier(void* barrier) {
    pthread_barrier_wait(static_cast<pthread_barrier_t*>(barrier));
}

namespace {

/// Runs one block after another; Shared is the block's shared memory.
template <class Shared, class Body>
void run_blocks(int blocks, int threads, Body body) {
    const auto shared = std::make_unique<Shared>();
    for (int b = 0; b < blocks; ++b) {
        // Shared memory starts undefined.
        std::memset(static_cast<void*>(shared.get()), 0xA5, sizeof(Shared));
        if (threads == 1) {
            body(Block(0, 1, &shared->scratch, nullptr), b, shared.get());
            continue;
        }
        pthread_barrier_t barrier;
        pthread_barrier_init(&barrier, nullptr, threads);
        std::vector<std::thread> pool;
        for (int t = 0; t < threads; ++t)
            pool.emplace_back(
                [&, t] { body(Block(t, threads, &shared->scratch, &barrier), b, shared.get()); });
        for (std::thread& t : pool) t.join();
        pthread_barrier_destroy(&barrier);
    }
}

class Emulation : public Backend {
  public:
    explicit Emulation(int threads) : threads_(threads) {}

    void reserve(std::size_t input, std::size_t work, std::size_t output) override {
        // Blocks of their own, so that the address sanitizer sees where each ends.
        host_input_.assign(input, 0);
        input_.assign(input, 0x5A);
        work_.assign(work, 0x5A);
        output_.assign(output, 0x5A);
        host_output_.assign(output, 0);
    }
    Buffers device() override { return {input_.data(), work_.data(), output_.data()}; }
    Buffers host() override { return {host_input_.data(), nullptr, host_output_.data()}; }
    void send(std::size_t offset, std::size_t bytes) override {
        std::memcpy(input_.data() + offset, host_input_.data() + offset, bytes);
    }
    void fetch(std::size_t offset, std::size_t bytes) override {
        std::memcpy(host_output_.data() + offset, output_.data() + offset, bytes);
    }

    void search(const Arrays& a, const Round& round) override {
        for (int i = 0; i < round.queries * round.chunks * kChunk; ++i)
            propose(a, round, i / kChunk / round.chunks, i / kChunk % round.chunks, i % kChunk);
        run_blocks<RankShared>(
            round.queries * round.chunks, threads_, [&](const Block& block, int b, RankShared* s) {
                rank_chunk(block, a, round, b / round.chunks, b % round.chunks, s);
            });
        run_blocks<AdvanceShared>(
            round.queries, threads_,
            [&](const Block& block, int b, AdvanceShared* s) { advance(block, a, round, b, s); });
    }
    void fit(const Arrays& a, int queries) override {
        run_blocks<FitShared>(queries, threads_, [&](const Block& block, int b, FitShared* s) {
            device::fit(block, a, b, s);
        });
    }

  private:
    int threads_;
    std::vector<char> input_, work_, output_, host_input_, host_output_;
};

}  // namespace

std::unique_ptr<Backend> make_emulation(int threads) {
    return std::make_unique<Emulation>(threads);
}

}  // namespace reloc::device

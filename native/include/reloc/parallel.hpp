// A parallel loop over independent work items.
#pragma once

#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace reloc {

/// Calls body(i) for i in [0, n) on up to `threads` threads (the caller's included). Items must not
/// depend on each other; the first exception is rethrown after all threads have stopped.
template <class Body>
void parallel_for(int n, int threads, Body body) {
    if (threads > n) threads = n;
    if (threads <= 1) {
        for (int i = 0; i < n; ++i) body(i);
        return;
    }
    std::atomic<int> next{0};
    std::exception_ptr error;
    std::mutex error_lock;
    const auto work = [&] {
        try {
            for (int i = next++; i < n; i = next++) body(i);
        } catch (...) {
            next = n;
            const std::lock_guard<std::mutex> guard(error_lock);
            if (!error) error = std::current_exception();
        }
    };
    std::vector<std::thread> pool;
    pool.reserve(threads - 1);
    for (int t = 1; t < threads; ++t) {
        try {
            pool.emplace_back(work);
        } catch (const std::system_error&) {
            break;  // the system has no more threads to give: go on with those there are
        }
    }
    work();
    for (std::thread& t : pool) t.join();
    if (error) std::rethrow_exception(error);
}

}  // namespace reloc

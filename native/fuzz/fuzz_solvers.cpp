// libFuzzer target: bytes become correspondences of every degenerate kind, which go through all
// solvers; no call may crash, take longer than kMaxSeconds or return a non-finite success. Prints
// the number of solver calls at the end.
#include <time.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <vector>

#include "reloc/absolute_pose.hpp"
#include "reloc/dsac.hpp"
#include "reloc/generalized_pose.hpp"
#include "reloc/parallel.hpp"
#include "reloc/relative_pose.hpp"
#include "reloc/rgbd_pose.hpp"

namespace {

/// CPU time that no call may exceed: a hundred times what the slowest takes under the sanitizers.
constexpr double kMaxSeconds = 2.0;
/// Points from which on noise levels differ over the image.
constexpr std::size_t kManyPoints = 1100;

enum Entry { kAbsolute, kFocal, kGeneralized, kRgbd, kRelative, kDsac, kEntries };
constexpr const char* kNames[kEntries] = {"absolute", "focal",    "generalized",
                                          "rgbd",     "relative", "dsac"};
std::atomic<long> calls[kEntries], successes[kEntries];
std::atomic<double> slowest[kEntries];

void print_calls() {
    long total = 0;
    for (int e = 0; e < kEntries; ++e) {
        std::fprintf(stderr, "%s: %ld calls, %ld successes, slowest %.4f s\n", kNames[e],
                     calls[e].load(), successes[e].load(), slowest[e].load());
        total += calls[e];
    }
    std::fprintf(stderr, "solver calls: %ld\n", total);
}

double cpu_seconds() {
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

/// Makes the call within the time limit and counts it.
template <class Call>
auto timed(Entry entry, Call call) {
    const double start = cpu_seconds();
    auto result = call();
    const double seconds = cpu_seconds() - start;
    if (seconds > kMaxSeconds) {
        std::fprintf(stderr, "%s took %.2f s\n", kNames[entry], seconds);
        std::abort();
    }
    if (seconds > slowest[entry]) slowest[entry] = seconds;
    ++calls[entry];
    if (result.status == reloc::Status::kOk) ++successes[entry];
    return result;
}

/// Small alphabet of coordinates, so that duplicates, lines and planes come up often.
float value(std::uint8_t byte) {
    constexpr float kSpecial[] = {0.0f, 1.0f, -1.0f, 1e-30f, 1e30f, -1e30f, 1e-6f, 1e6f};
    if (byte == 0xFF) return std::numeric_limits<float>::quiet_NaN();
    if (byte == 0xFE) return std::numeric_limits<float>::infinity();
    if (byte >= 0xF0) return kSpecial[byte & 7];
    return (static_cast<float>(byte) - 120.0f) / 16.0f;
}

void check(const reloc::PoseResult& r, std::size_t n) {
    if (r.inlier.size() != n || !(r.score >= 0 && r.score <= 1)) std::abort();
    if (!r.cam_from_world.finite()) std::abort();
    if (r.status != reloc::Status::kOk) return;
    if (!r.covariance.allFinite()) std::abort();
    if (std::abs(r.cam_from_world.R.determinant() - 1) > 1e-6) std::abort();
}

/// A rig of two images that see the first and the second half of the points, `moved` apart.
void fuzz_generalized(const reloc::Correspondences& c, const reloc::Camera& camera,
                      const reloc::AbsolutePoseOptions& options, float moved) {
    const std::size_t half = c.n / 2;
    std::vector<reloc::RigImage> rig(2);
    rig[0].points = rig[1].points = c;
    rig[0].points.n = half;
    rig[1].points.n = c.n - half;
    rig[1].points.points2d.f32 += 2 * half;
    rig[1].points.points3d.f32 += 3 * half;
    if (c.weights) rig[1].points.weights.f32 += half;
    if (c.variances) rig[1].points.variances.f32 += half;
    rig[0].camera = rig[1].camera = &camera;
    rig[1].cam_from_rig.t.x() = moved;
    const reloc::PoseResult one =
        timed(kGeneralized, [&] { return reloc::estimate_generalized_pose(rig, options); });
    check(one, c.n);
    if (options.seed % 128 != 4) return;
    reloc::PoseResult threaded[2];
    for (int i = 0; i < 2; ++i) {
        reloc::AbsolutePoseOptions more = options;
        more.threads = i + 1;
        more.max_iterations = 1024;  // rounds begin at 512
        threaded[i] =
            timed(kGeneralized, [&] { return reloc::estimate_generalized_pose(rig, more); });
        check(threaded[i], c.n);
    }
    if (threaded[0].cam_from_world.t != threaded[1].cam_from_world.t) std::abort();
}

/// Relative pose between the pixels and pixels moved by their points.
void fuzz_relative(const std::vector<float>& p2, const std::vector<float>& p3, std::size_t n,
                   const reloc::Camera& camera, std::uint8_t seed) {
    std::vector<float> q2(2 * n + 1);
    for (std::size_t i = 0; i < n; ++i) {
        q2[2 * i] = p2[2 * i] + 8 * p3[3 * i];
        q2[2 * i + 1] = p2[2 * i + 1] + 8 * p3[3 * i + 1];
    }
    reloc::ArrayRef a, b;
    a.f32 = p2.data();
    b.f32 = q2.data();
    reloc::RelativePoseOptions l;
    l.seed = seed;
    l.max_iterations = 32;
    l.min_inliers = 5;
    const reloc::PoseResult relative =
        timed(kRelative, [&] { return reloc::estimate_relative_pose(a, b, n, camera, camera, l); });
    if (relative.inlier.size() != n) std::abort();
    if (relative.status == reloc::Status::kOk && !relative.cam_from_world.finite()) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
    std::atexit(print_calls);
    return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    if (size < 4) return 0;
    const std::uint8_t mode = data[0], flags = data[1], seed = data[2];
    const bool consistent = mode & 64;  // most points agree on a pose
    data += 3;
    size -= 3;
    // Now and then the points come again and again, a little moved, until there are many.
    const std::size_t given = size / 8, n = given > 0 && seed % 64 == 1 ? kManyPoints : given;
    std::vector<float> p2(2 * n + 1), p3(3 * n + 1), w(n + 1), var(n + 1), pc(3 * n + 1);
    for (std::size_t i = 0; i < n; ++i) {
        const std::uint8_t* b = data + 8 * (i % given);
        const float moved = static_cast<float>(i / given) / 64;
        p2[2 * i] = 320 + 40 * value(b[0]) + moved;
        p2[2 * i + 1] = 240 + 40 * value(b[1]) - moved;
        for (int k = 0; k < 3; ++k) {
            p3[3 * i + k] = value(b[2 + k]);
            pc[3 * i + k] = value(b[(5 + k + (flags >> 6)) % 8]);
        }
        if (consistent && b[7] < 160) {
            // As a camera 12 units off sees the point, but for what two bytes move it.
            const float *X = &p3[3 * i], z = X[2] + 12;
            p2[2 * i] = 320 + 525 * X[0] / z + value(b[0]);
            p2[2 * i + 1] = 240 + 525 * X[1] / z + value(b[1]);
            for (int k = 0; k < 3; ++k) pc[3 * i + k] = X[k] + (k == 2 ? 12 : 0) + value(b[0]) / 64;
        }
        w[i] = value(b[5]);
        var[i] = value(b[6]);
    }
    reloc::Correspondences c;
    c.n = n;
    c.points2d.f32 = p2.data();
    c.points3d.f32 = p3.data();
    c.points_cam.f32 = pc.data();
    if (flags & 1) c.weights.f32 = w.data();
    if (flags & 2) c.variances.f32 = var.data();
    constexpr const char* kKernels[] = {"auto", "avx2", "baseline"};
    const char* kernels = kKernels[mode % 3];
    if (!reloc::select_kernels(kernels)) kernels = "baseline";
    const reloc::Camera camera =
        (flags & 4) ? reloc::Camera::create("OPENCV", 640, 480,
                                            {525, 525, 320, 240, -0.2, 0.05, 0.001, 0.001})
        : (flags & 8)
            ? reloc::Camera::create("OPENCV_FISHEYE", 640, 480, {300, 300, 320, 240, 0.01, 0, 0, 0})
            : reloc::Camera::create("SIMPLE_PINHOLE", 640, 480, {525, 320, 240});
    reloc::AbsolutePoseOptions o;
    o.kernels = kernels;
    o.seed = seed;
    o.max_iterations = 64;
    o.min_score = 0;
    o.min_inliers = 4;
    o.residual = static_cast<reloc::Residual>((flags >> 4) % 3);
    const reloc::PoseResult pose =
        timed(kAbsolute, [&] { return reloc::estimate_absolute_pose(c, camera, o); });
    check(pose, n);
    // Batches over threads, now and then: the same answer for every number of threads.
    if (seed % 16 == 0) {
        reloc::PoseResult batch[3];
        reloc::parallel_for(3, 2, [&](int i) {
            reloc::AbsolutePoseOptions more = o;
            more.threads = i + 1;
            batch[i] =
                timed(kAbsolute, [&] { return reloc::estimate_absolute_pose(c, camera, more); });
        });
        for (const reloc::PoseResult& r : batch) {
            check(r, n);
            if (r.status != pose.status || r.cam_from_world.t != pose.cam_from_world.t)
                std::abort();
        }
    }
    // Fisheye models, whose rays do not scale with the focal length, are refused before.
    if (seed % 8 == 3 && (flags & 12) != 8) {
        reloc::AbsolutePoseOptions free = o;
        free.estimate_focal = true;
        free.threads = 1 + seed / 8 % 2;
        check(timed(kFocal, [&] { return reloc::estimate_absolute_pose(c, camera, free); }), n);
    }
    if (seed % 8 == 4) fuzz_generalized(c, camera, o, mode / 64.0f);
    // Ten times as slow as the others under the sanitizers.
    if (seed % 8 == 2) fuzz_relative(p2, p3, n, camera, seed);
    reloc::DsacOptions d;
    d.kernels = kernels;
    d.hypotheses = 4;
    d.max_tries = 8;
    d.seed = seed;
    check(timed(kDsac, [&] { return reloc::estimate_pose_dsac(c, camera, d); }), n);
    reloc::RgbdPoseOptions r;
    r.kernels = kernels;
    r.seed = seed;
    r.max_iterations = 64;
    r.min_score = 0;
    r.min_inliers = 4;
    check(timed(kRgbd, [&] { return reloc::estimate_rgbd_pose(c, r); }), n);
    return 0;
}

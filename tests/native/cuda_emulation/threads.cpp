// Emulated blocks of one and of several threads against each other, for the thread sanitizer: a
// race here is a race on a device. Exits with the number of differences.
#include <cmath>
#include <cstdio>
#include <vector>

#include "batch.hpp"
#include "emulate.hpp"
#include "reloc/rng.hpp"

namespace {

struct Scene {
    std::vector<double> points2d, points3d, weights, variances;
};

double normal(reloc::Rng* rng) {
    return std::sqrt(-2 * std::log(1 - rng->uniform())) * std::cos(2 * M_PI * rng->uniform());
}

/// Points before a camera at the origin, with noise and outliers.
Scene make_scene(int n, double outliers, std::uint64_t seed) {
    reloc::Rng rng(seed, 1);
    Scene s;
    for (int i = 0; i < n; ++i) {
        const double x = 640 * rng.uniform(), y = 480 * rng.uniform(), z = 1 + 3 * rng.uniform();
        s.points2d.insert(s.points2d.end(), {x, y});
        double p[3] = {(x - 319.5) / 525 * z, (y - 239.5) / 525 * z, z};
        const bool bad = rng.uniform() < outliers;
        for (double& v : p)
            s.points3d.push_back(bad ? 6 * rng.uniform() - 3 : v + 0.01 * normal(&rng));
        s.weights.push_back(0.5 + rng.uniform());
        s.variances.push_back(1e-4 * (0.5 + rng.uniform()));
    }
    return s;
}

}  // namespace

int main() {
    const Scene scenes[] = {make_scene(1100, 0.3, 1), make_scene(400, 0.6, 2),
                            make_scene(300, 0.2, 3), make_scene(150, 1.0, 4)};
    const auto camera = reloc::Camera::create("SIMPLE_PINHOLE", 640, 480, {525, 319.5, 239.5});
    std::vector<reloc::device::BatchProblem> problems;
    for (const Scene& s : scenes) {
        reloc::Correspondences c;
        c.n = s.points2d.size() / 2;
        c.points2d.f64 = s.points2d.data();
        c.points3d.f64 = s.points3d.data();
        if (problems.size() == 1) c.weights.f64 = s.weights.data();
        if (problems.size() == 2) c.variances.f64 = s.variances.data();
        problems.push_back({c, &camera});
    }
    int differences = 0;
    for (const auto residual :
         {reloc::Residual::kAuto, reloc::Residual::kRay, reloc::Residual::kReprojection}) {
        reloc::AbsolutePoseOptions options;
        options.residual = residual;
        options.max_iterations = 1200;
        const auto serial = reloc::device::make_emulation(1),
                   block = reloc::device::make_emulation(4);
        const auto a = reloc::device::solve_batch({serial.get()}, problems, options, 1),
                   b = reloc::device::solve_batch({block.get()}, problems, options, 1);
        for (std::size_t i = 0; i < problems.size(); ++i) {
            const double error = (a[i].cam_from_world.t - b[i].cam_from_world.t).norm();
            const bool same = a[i].status == b[i].status && a[i].iterations == b[i].iterations &&
                              (a[i].status != reloc::Status::kOk ||
                               (error < 1e-5 && std::abs(a[i].inliers - b[i].inliers) <= 1));
            std::printf("residual %d scene %zu: status %d, %d samples, %d inliers, differs by %g\n",
                        static_cast<int>(residual), i, static_cast<int>(b[i].status),
                        b[i].iterations, b[i].inliers, error);
            differences += !same;
        }
    }
    return differences;
}

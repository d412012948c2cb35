#include "reloc/absolute_pose.hpp"

#include "reloc/calibrated_pose.hpp"
#include "reloc/constants.hpp"
#include "reloc/focal_check.hpp"
#include "reloc/focal_pose.hpp"

#include <cmath>

namespace reloc {
namespace {

constexpr int kGuessSamples = 8192;  // triples, for a focal length that is a guess

}  // namespace

PoseResult estimate_absolute_pose(const Correspondences& in, const Camera& camera,
                                  const AbsolutePoseOptions& options) {
    const Kernels& kernels = *select_kernels(options.kernels);
    PoseResult result = PoseResult::of(in.n);
    if (in.n < 4) return result;
    Problem problem;
    build_problem(in, camera, kernels, options.seed, &problem);
    if (problem.n < 4) return result;
    if (options.estimate_focal || sought_with_focal(camera, options)) {
        FocalSearch focal;
        if (!options.estimate_focal) {
            focal.sigma = camera.focal_sigma;
            focal.max_samples = kGuessSamples;
        }
        PoseResult sought = estimate_focal_pose(kernels, in, problem, camera, options, focal);
        const double std = sought.focal_std / sought.focal_scale;
        const bool told = sought.status == Status::kOk && std < kFocalTold * camera.focal_sigma &&
                          std::abs(std::log(sought.focal_scale)) > kFocalAgrees * std;
        if (options.estimate_focal || told || sought.status == Status::kNoHypothesis) return sought;
        // Over a flat scene any will do, and what agrees with the points is no accident: then it is
        // the one that came with the image.
    }
    const AbsolutePoseOptions resolved = resolve_options(options, in);
    CalibratedPose found;
    const bool any = search_calibrated_pose(kernels, problem, camera, resolved, &found);
    result.iterations = found.iterations;
    result.local_optimisations = found.local_optimisations;
    conclude(kernels, in, problem, camera, resolved, any ? &found.fit : nullptr, found.residual,
             &result);
    return result;
}

}  // namespace reloc

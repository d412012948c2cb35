// What the solvers for absolute poses from 2D-3D correspondences are asked for.
#pragma once

#include "reloc/problem.hpp"
#include "reloc/refine.hpp"
#include "reloc/search_options.hpp"

namespace reloc {

struct AbsolutePoseOptions : SearchOptions {
    double search_radius = 0;  ///< pixels; width of the search; 0: 25, or 12 for reprojection
    double threshold = 10;     ///< pixels; narrow radius and first robust scale of the final fit
    Residual residual = Residual::kAuto;
    double pixel_noise = 1.0;  ///< pixels; image part of the noise when variances are given
    bool local_noise = true;
    bool estimate_focal = false;  ///< see focal_pose.hpp
    bool verify_focal = true;     ///< see focal_check.hpp
    double focal_floor = 0;       ///< standard deviation over the focal length, at least
    double redundancy = 1;        ///< correspondences that are worth an independent one
    double min_score =
        0.01;  ///< poses less likely to be right than this are not returned as a success
    const char* kernels = "auto";
};

/// The options with the residual (where variances or a lattice of pixels decide it) and the search
/// radius settled.
AbsolutePoseOptions resolve_options(const AbsolutePoseOptions& options, const Correspondences& in);

}  // namespace reloc

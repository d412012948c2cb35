#include "reloc/absolute_options.hpp"

#include <algorithm>

#include "reloc/constants.hpp"

namespace reloc {

AbsolutePoseOptions resolve_options(const AbsolutePoseOptions& options, const Correspondences& in) {
    AbsolutePoseOptions out = options;
    if (out.residual == Residual::kAuto && (in.variances || on_lattice(in, options.seed)))
        out.residual = Residual::kRay;
    if (!(out.search_radius > 0)) {
        out.search_radius =
            out.residual == Residual::kReprojection ? kPixelSearchRadius : kSceneSearchRadius;
        out.search_radius = std::max(out.search_radius, out.threshold);
    }
    return out;
}

}  // namespace reloc

// Points of all images of a generalized camera; internal to the library.
#pragma once

#include <vector>

#include "reloc/generalized_pose.hpp"

namespace reloc::rig {

/// The transpose of the adjoint of cam_from_rig: takes gradients in a camera to the rig.
inline Mat6 gradient_to_rig(const Pose& cam_from_rig) {
    const Mat3& R = cam_from_rig.R;
    const Vec3& t = cam_from_rig.t;
    Mat3 cross;
    cross << 0, -t.z(), t.y(), t.z(), 0, -t.x(), -t.y(), t.x(), 0;
    Mat6 out = Mat6::Zero();
    out.topLeftCorner<3, 3>() = R.transpose();
    out.bottomRightCorner<3, 3>() = R.transpose();
    out.topRightCorner<3, 3>() = (cross * R).transpose();
    return out;
}

struct View {
    Problem problem;
    const Camera* camera;
    Pose cam_from_rig;
    Mat6 to_rig;
    Vec3 offset;      ///< the problem's centre less the rig's
    double priority;  ///< weight of a point of mean weight
    int first;        ///< of its points among those of all
};

/// The points of all images, in a frame centred on the first image's points.
struct Rig {
    std::vector<View> views;
    Vec3 centre = Vec3::Zero();
    int n = 0, preview_n = 0;
    double total = 0;
    std::vector<double> cumulative;  ///< of weights, empty if unweighted
    std::vector<int> source;

    Pose cam_pose(const View& v, const Pose& rig_from_world) const {
        Pose out;
        out.R = v.cam_from_rig.R * rig_from_world.R;
        out.t = v.cam_from_rig.R * rig_from_world.t + v.cam_from_rig.t;
        return centred(out, v.offset);
    }
    const View& view_of(int point) const {
        std::size_t k = views.size() - 1;
        while (views[k].first > point) --k;
        return views[k];
    }
};

inline void build(const std::vector<RigImage>& images, const Kernels& kernels, std::uint64_t seed,
                  Rig* rig) {
    rig->views.reserve(images.size());
    std::vector<double> sums;
    double sum = 0;
    int before = 0;
    bool weighted = false;
    for (const RigImage& image : images) {
        View v;
        v.camera = image.camera;
        v.cam_from_rig = image.cam_from_rig;
        v.to_rig = gradient_to_rig(image.cam_from_rig);
        build_problem(image.points, *image.camera, kernels, seed, &v.problem);
        double of_image = v.problem.n;
        if (image.points.weights) {
            weighted = true;
            of_image = 0;
            for (int i = 0; i < v.problem.n; ++i)
                of_image += image.points.weights[v.problem.input_index(i)];
        }
        for (int i = 0; i < v.problem.n; ++i)
            rig->source.push_back(before + v.problem.input_index(i));
        before += static_cast<int>(image.points.n);
        if (v.problem.n == 0) continue;
        v.first = rig->n;
        rig->n += v.problem.n;
        rig->preview_n += v.problem.preview_n;
        sums.push_back(of_image);
        sum += of_image;
        rig->views.push_back(std::move(v));
    }
    if (rig->views.empty()) return;
    rig->centre = rig->views[0].problem.centre;
    const double mean = sum / rig->n;
    for (std::size_t k = 0; k < rig->views.size(); ++k) {
        View& v = rig->views[k];
        v.offset = v.problem.centre - rig->centre;
        v.priority = sums[k] / v.problem.n / mean;
        const PointsView p = v.problem.view();
        for (int i = 0; weighted && i < v.problem.n; ++i) {
            const double w = v.priority * (p.w ? p.w[i] : 1.0);
            rig->cumulative.push_back(w + (rig->cumulative.empty() ? 0 : rig->cumulative.back()));
        }
        rig->total += v.priority * v.problem.total;
    }
}

}  // namespace reloc::rig

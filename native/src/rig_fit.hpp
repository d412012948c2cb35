// The final fit's points and residuals of a generalized camera; internal to the library.
#pragma once

#include <algorithm>
#include <vector>

#include "lens_fit.hpp"
#include "rig.hpp"
#include "robust_fit.hpp"

namespace reloc::rig {

/// A rig's pose as robust_fit takes it: float for what is common, exact for the images.
struct RigPoseF : PoseF {
    Pose exact;
};
struct RigPose {
    static constexpr int kParameters = 6;
    using Step = Vec6;
    using Equations = NormalEquations;
    Pose pose;

    RigPose perturbed(const Vec6& step) const { return {pose.perturbed(step)}; }
    bool finite() const { return pose.finite(); }
    void normalize() { pose.normalize(); }
    RigPoseF to_float() const { return {pose.to_float(), pose}; }
};

inline void keep(const RigPose& state, const Mat6& covariance, FitResult* result) {
    result->pose = state.pose;
    result->covariance = covariance;
}

class RigSet;
/// All points of a set, or one cell of one image.
struct RigView {
    const RigSet* set;
    int cell;  ///< -1: all
};

/// The final fit's points of all images: cells of one image after those of the other.
class RigSet : public CellLayout {
  public:
    void build(const Kernels& kernels, const Rig& rig, const Pose& pose, double radius,
               const FitOptions& options, bool local);

    RigView view() const { return {this, -1}; }
    RigView cell(int c) const { return {this, c}; }
    float* info() { return rows_.row(kInfo); }
    const float* prior() const { return rows_.row(kPrior); }
    const float* base() const { return rows_.row(kBase); }
    double floor2() const { return floor2_; }
    /// Replaces the base information of points by that of pixels at their depth.
    void measure_in_pixels(const Rig& rig, const Pose& pose);

    struct Point {
        const View* image;
        FitView points;
        int at;
    };
    Point point(int slot) const {
        std::size_t k = parts_.size() - 1;
        while (parts_[k].slot > slot) --k;
        return {parts_[k].view, parts_[k].set.view(), slot - parts_[k].slot};
    }

    /// Calls visit(view, slots of its points or of the cell, first slot in this set).
    template <class Visit>
    void each(const RigView& of, Visit visit) const {
        for (const Part& part : parts_) {
            const int cells = part.set.cells();
            if (of.cell >= 0 && (of.cell < part.cell || of.cell >= part.cell + cells)) continue;
            FitView v = of.cell < 0 ? part.set.view() : part.set.cell(of.cell - part.cell);
            const int slot =
                part.slot + (of.cell < 0 ? 0 : part.set.cell_begin(of.cell - part.cell));
            v.info = rows_.row(kInfo) + slot;
            v.w = rows_.row(kPrior) + slot;
            visit(*part.view, v, slot);
        }
    }

  private:
    enum Row { kInfo, kPrior, kBase, kRows };
    struct Part {
        const View* view;
        FitSet set;
        int cell, slot;
    };
    std::vector<Part> parts_;
    FloatRows rows_;
    double floor2_ = 0;
};

inline void RigSet::build(const Kernels& kernels, const Rig& rig, const Pose& pose, double radius,
                          const FitOptions& options, bool local) {
    parts_.resize(rig.views.size());
    for (std::size_t k = 0; k < parts_.size(); ++k) {
        Part& part = parts_[k];
        const View& v = rig.views[k];
        part.view = &v;
        part.cell = cells();
        part.slot = slots();
        part.set.build(kernels, v.problem.view(), v.problem.n, options.residual,
                       rig.cam_pose(v, pose).to_float(), radius, local ? 10 : 4, local ? 8 : 3);
        append(part.set, v.first);
    }
    rows_.allocate(kRows, slots());
    double weight = 0;
    for (Part& part : parts_) {
        const View& v = *part.view;
        FitOptions of_image = options;
        of_image.lens = v.camera->plain() ? nullptr : v.camera;
        float* prior = rows_.row(kPrior) + part.slot;
        for (int i = 0; i < part.set.slots(); ++i)
            prior[i] = static_cast<float>(v.priority) * part.set.prior()[i];
        const double floor2 = base_information(part.set, v.problem, rig.cam_pose(v, pose), of_image,
                                               rows_.row(kBase) + part.slot);
        floor2_ += part.set.points() * floor2;
        weight += part.set.points();
        if (of_image.lens && options.residual != Residual::kRay)
            part.set.through(kernels, v.camera->lens());
    }
    floor2_ /= std::max(weight, 1.0);
}

inline void RigSet::measure_in_pixels(const Rig& rig, const Pose& pose) {
    for (const Part& part : parts_) {
        const PoseF cam = rig.cam_pose(*part.view, pose).to_float();
        const FitView v = part.set.view();
        float* base = rows_.row(kBase) + part.slot;
        for (int i = 0; i < v.n; ++i) {
            const float z = cam.r[6] * v.X[i] + cam.r[7] * v.Y[i] + cam.r[8] * v.Z[i] + cam.t[2];
            base[i] = part.set.scale2()[i] / std::max(z * z, 1e-18f);
        }
    }
}

/// The residual of each image, moved to the rig.
struct RigKernel {
    const Kernels& kernels;
    const Rig& rig;
    bool ray;

    template <class Run>
    void with(const View& v, Run run) const {
        if (ray)
            run(kernels.ray);
        else if (v.camera->plain())
            run(kernels.reprojection);
        else
            run(LensKernel{lens_kernels(kernels), v.camera->lens()});
    }
    void errors2(const RigView& view, const RigPoseF& pose, float* out) const {
        const int first = view.cell < 0 ? 0 : view.set->cell_begin(view.cell);
        view.set->each(view, [&](const View& v, const FitView& points, int slot) {
            const PoseF cam = rig.cam_pose(v, pose.exact).to_float();
            with(v, [&](const auto& kernel) { kernel.errors2(points, cam, out + slot - first); });
        });
    }
    void equations(const RigView& view, const RigPoseF& pose, float c2,
                   NormalEquations* out) const {
        Mat6 H = Mat6::Zero();
        Vec6 g = Vec6::Zero();
        out->cost = out->weight = 0;
        view.set->each(view, [&](const View& v, const FitView& points, int) {
            const PoseF cam = rig.cam_pose(v, pose.exact).to_float();
            NormalEquations eq;
            with(v, [&](const auto& kernel) { kernel.equations(points, cam, c2, &eq); });
            H += v.to_rig * hessian(eq) * v.to_rig.transpose();
            g += v.to_rig * gradient(eq);
            out->cost += eq.cost;
            out->weight += eq.weight;
        });
        int k = 0;
        for (int i = 0; i < 6; ++i) {
            out->g[i] = g[i];
            for (int j = i; j < 6; ++j) out->h[k++] = H(i, j);
        }
    }

    double depth(const RigView& view, const RigPoseF& pose, int slot) const {
        const auto [image, points, at] = view.set->point(slot);
        const PoseF cam = rig.cam_pose(*image, pose.exact).to_float();
        return cam.r[6] * points.X[at] + cam.r[7] * points.Y[at] + cam.r[8] * points.Z[at] +
               cam.t[2];
    }
};

inline double depth_of(const RigKernel& kernel, const RigView& view, const RigPoseF& pose,
                       int slot) {
    return kernel.depth(view, pose, slot);
}

}  // namespace reloc::rig

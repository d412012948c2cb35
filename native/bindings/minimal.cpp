// Minimal solvers, for tests and for searches of one's own.
#include "common.hpp"
#include "reloc/gp3p.hpp"
#include "reloc/p3p.hpp"

namespace {

/// (n, 4, 4) cam_from_world.
py::array_t<double> poses_to_python(const reloc::Pose* poses, int n) {
    py::array_t<double> out({n, 4, 4});
    auto T = out.mutable_unchecked<3>();
    for (int k = 0; k < n; ++k) {
        for (int i = 0; i < 4; ++i) {
            for (int j = 0; j < 4; ++j)
                T(k, i, j) = i == 3 ? (j == 3) : (j == 3 ? poses[k].t[i] : poses[k].R(i, j));
        }
    }
    return out;
}

}  // namespace

void bind_minimal(py::module_& m) {
    m.def(
        "p3p",
        [](const Doubles& bearings, const Doubles& points, const std::string& kernels) {
            if (bearings.ndim() != 2 || points.ndim() != 2 || bearings.size() != 9 ||
                points.size() != 9) {
                throw py::value_error("p3p takes three bearings and three points, each (3, 3)");
            }
            const char* name = kernel_name(kernels);
            reloc::Vec3 y[3], X[3];
            for (int i = 0; i < 3; ++i) {
                for (int j = 0; j < 3; ++j) {
                    y[i][j] = bearings.at(i, j);
                    X[i][j] = points.at(i, j);
                }
                y[i].normalize();
            }
            reloc::Pose poses[4];
            const int n = reloc::p3p(y, X, *reloc::select_kernels(name), poses);
            return poses_to_python(poses, n);
        },
        "bearings"_a, "points"_a, "kernels"_a = "auto");

    m.def(
        "gp3p",
        [](const Doubles& origins, const Doubles& directions, const Doubles& points) {
            reloc::Vec3 p[3], d[3], X[3];
            for (const auto* a : {&origins, &directions, &points}) {
                if (a->ndim() != 2 || a->shape(0) != 3 || a->shape(1) != 3)
                    throw py::value_error("gp3p takes three origins, directions and points");
            }
            for (int i = 0; i < 3; ++i) {
                for (int j = 0; j < 3; ++j) {
                    p[i][j] = origins.at(i, j);
                    d[i][j] = directions.at(i, j);
                    X[i][j] = points.at(i, j);
                }
                d[i].normalize();
            }
            reloc::Pose poses[8];
            return poses_to_python(poses, reloc::gp3p(p, d, X, poses));
        },
        "origins"_a, "directions"_a, "points"_a);
}

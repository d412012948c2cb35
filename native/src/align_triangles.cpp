#include "reloc/align_triangles.hpp"

namespace reloc {

bool align_triangles(const Vec3 cam[3], const Vec3 scene[3], Pose* out) {
    const auto frame = [](const Vec3 p[3], Mat3* F) {
        const Vec3 a = p[1] - p[0], b = p[2] - p[0], n = a.cross(b);
        const double la = a.norm(), ln = n.norm();
        if (!(ln > 1e-9 * la * b.norm()) || !(la > 0)) return false;
        F->col(0) = a / la;
        F->col(2) = n / ln;
        F->col(1) = F->col(2).cross(F->col(0));
        return true;
    };
    Mat3 C, S;
    if (!frame(cam, &C) || !frame(scene, &S)) return false;
    out->R = C * S.transpose();
    out->t = (cam[0] + cam[1] + cam[2] - out->R * (scene[0] + scene[1] + scene[2])) / 3.0;
    return out->finite();
}

}  // namespace reloc

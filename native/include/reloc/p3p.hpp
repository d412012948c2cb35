// Minimal absolute pose: three points on three rays from one centre.
#pragma once

#include "reloc/problem.hpp"

namespace reloc {

/// All poses that map three scene points onto three viewing rays; up to four, with all three points
/// in front. Persson and Nordberg, "Lambda Twist: An Accurate Fast Robust Perspective Three Point
/// Solver", ECCV 2018.
///
/// `bearings` are unit vectors in the camera frame. Degenerate triples give no solution.
int p3p(const Vec3 bearings[3], const Vec3 points[3], const Kernels& kernels, Pose out[4]);

/// Puts points `idx` of the problem into lane `lane` of a batch.
void load_sample(const Problem& problem, const int idx[3], int lane, P3PBatch* batch);

/// Solution `k` of lane `lane`; false if there is none.
bool solution(const P3PBatch& batch, int k, int lane, PoseF* out);

}  // namespace reloc

// Constants of the searches and of the final fit, for the CPU and for CUDA alike.
#pragma once

namespace reloc {

// Search.
constexpr int kChunk = 16;                      // minimal samples per chunk
constexpr int kSerialChunks = 32, kRound = 32;  // chunks before rounds begin, and of a round
constexpr int kLeaders = 3;                     // poses of a chunk that are scored on all points
constexpr int kLocalSteps = 8;                  // of local optimisation
constexpr int kMaxDraws = 32;                   // for three distinct points
constexpr double kSceneSearchRadius = 25, kPixelSearchRadius = 12;  // pixels
// Share of points near the pose, below which local optimisation needs all points.
constexpr double kFewShare = 0.1;
// Where inliers are fewer than the first, samples are drawn for longer by the factor and fits are
// checked harder; where they are more than the last, the best pose needs no more polish.
constexpr double kPoorShare = 0.12, kPoorFactor = 3, kManyShare = 0.3;

// Log-likelihood per point by which noise in the scene points must explain the residuals better
// than noise in the image before measured pixels are taken to be exact. Real evidence is in
// between, and the reprojection error loses less there.
constexpr double kRayGain = 0.15;

// Selection of the points of the final fit.
constexpr int kDensePoints = 1000;       // enough for a noise level per image cell
constexpr double kMinPixelNoise = 0.01;  // pixels; below it float rounding would pass for noise
// Points further off than this many sigmas of the first noise estimate take no part. That estimate
// falls short where some regions are much noisier; where inliers are few a wide selection would
// hold little but outliers.
constexpr double kSelectSigmas = 16.0, kSelectSigmasPoor = 8.0, kPoorSupport = 0.25;
constexpr double kMaxWiden = 4.0;       // of the selection over the search
constexpr double kEnoughSupport = 250;  // inliers that a sample must hold to stand for all points

// Noise levels and outlier shares.
constexpr double kProbeScale = 2.0;     // Geman-McClure scale of the first estimate, in sigmas
constexpr int kProbe = 512;             // residuals whose lower quartile it starts from
constexpr double kLevelPrior = 12.0;    // points' worth of belief in the global noise level
constexpr double kSharePrior = 4.0;     // points' worth of belief in the global density of outliers
constexpr double kFirstOutliers = 0.2;  // share of the points in reach, until the first pass
// An inlier 4 sigmas off keeps half of its weight in a clean cell.
constexpr double kMinKappa = 3e-4, kMaxKappa = 0.5;
constexpr double kMaxGrowth = 1.5;  // of the noise variance over its first estimate
// Squared sigmas within which outliers are taken to be spread evenly. Patches of outliers are not
// even far out, so dense evidence looks no further than needed; single mismatches are, and a wide
// disc counts them better.
constexpr double kLocalCut = 18.0, kGlobalCut = 36.0, kTailCut = 24.0;
// Inliers have heavy tails where that lowers the variance of the pose to less than the first of
// what it is; it takes some points to tell. Their noise variance is first taken to be the last of
// that of a Gaussian, and updated a few times.
constexpr double kTailGain = 0.9, kTailPoints = 50, kTailLevel = 0.7;
constexpr int kTailUpdates = 2;
// Lower quartile and 99.73 % of the squared length of a unit Gaussian vector, by its components.
constexpr double kQuartile2 = 0.575, kQuartile3 = 1.213;
constexpr double kInlier2 = 11.8, kInlier3 = 14.2;

// Final fit.
constexpr int kMaxPasses = 6;
constexpr float kNotRobust = 1e30f;  // squared scale: no robust weight but the posterior's
constexpr double kCellPrior = 4;  // points' worth of belief that a cell's noise is like the others'
constexpr int kDepthStep = 7;     // a mean depth needs no more than a sample of the inliers
constexpr int kFitAttempts = 3;
constexpr double kTighter = 0.4;  // bound on the noise variance from one attempt to the next
// Of the search's best pose, the support that a sound fit keeps.
constexpr double kKeptSupport = 0.95, kKeptSupportPoor = 0.975;
constexpr double kCorrelated = 2.5;  // standard deviations above independence

// Decimal logarithm of the false alarms from which on a pose passes for chance.
constexpr double kMaxFalseAlarms = -1.0;

// Focal length. Inliers contradict the camera's when they want it changed by more than the first
// two: in standard deviations, and in logarithm (or in standard deviations of the prior). Where
// they do, or the score is below the third, the pose is sought again with the focal length left
// free, over no more than this many samples.
constexpr double kFocalDoubtSigmas = 2.5, kFocalShift = 0.02, kFocalPriorSigmas = 3;
constexpr double kFocalDoubt = 0.5;
constexpr int kFocalSamples = 1024, kFocalLeastPoints = 12;
// The free focal length is taken where it differs by as many of its own standard deviations and by
// this much: in place of a success, with a support that is as far beyond chance but for this
// factor; in place of none, with this score and by so many orders of magnitude farther.
constexpr double kFocalSigmas = 4, kFocalTaken = 0.05, kFocalKept = 0.8, kFocalSureScore = 0.7,
                 kFocalGain = 5;
// Inliers that want so much more than that, of which no pose comes, are refused; where they want
// more than the second, a factor of three, it is their noise that speaks and not the lens.
constexpr double kFocalSureSigmas = 8, kFocalLargest = 1.1;
// A pose at the given focal length moves only for what is beyond so many standard deviations.
constexpr double kFocalNoise = 3;
// So many points at least must share what is said of a focal length: this share of those near the
// pose, within bounds; found in so many steps.
constexpr double kFocalShare = 0.125, kFocalLeastSay = 2, kFocalMostSay = 20;
constexpr int kFocalBoundSteps = 30;
// Of the standard deviation that a focal length came with: what the points must know it better
// than.
constexpr double kFocalTold = 0.5;
// Standard deviations within which the points agree with a guess of the focal length.
constexpr double kFocalAgrees = 2;
// A camera whose focal length is known worse than this is sought with the focal length free.
constexpr double kFocalGuess = 0.1;

}  // namespace reloc

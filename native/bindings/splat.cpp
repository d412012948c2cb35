// Bindings of the Gaussian rasterizer. reloc_core.rendering checks arrays; here views are taken
// and the GIL released.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <limits>

#include "reloc/splat/rasterizer.hpp"

namespace py = pybind11;
using namespace pybind11::literals;

namespace {

namespace splat = reloc::splat;
using Floats = py::array_t<float>;
using Shape = std::vector<py::ssize_t>;

/// Data of a C-contiguous float32 array of the given shape; null for None.
const float* view(const py::object& object, const Shape& shape, const char* name) {
    if (object.is_none()) return nullptr;
    if (!py::isinstance<Floats>(object))
        throw py::type_error(std::string(name) + " must be a float32 NumPy array");
    const auto array = py::reinterpret_borrow<py::array>(object);
    if (!std::equal(shape.begin(), shape.end(), array.shape(), array.shape() + array.ndim()))
        throw py::value_error(std::string(name) + " has the wrong shape");
    if (!(array.flags() & py::array::c_style))
        throw py::value_error(std::string(name) + " must be C-contiguous");
    return static_cast<const float*>(array.data());
}

struct SplatScene {
    std::vector<py::object> arrays;  // keeps the memory alive
    splat::Scene scene{};
};

SplatScene make_scene(const py::object& means, const py::object& quaternions,
                      const py::object& scales, const py::object& opacities,
                      const py::object& channels) {
    SplatScene out{{means, quaternions, scales, opacities, channels}, {}};
    if (!py::isinstance<py::array>(means) || !py::isinstance<py::array>(channels))
        throw py::type_error("means and channels must be float32 NumPy arrays");
    const auto c = py::reinterpret_borrow<py::array>(channels);
    const auto n = py::reinterpret_borrow<py::array>(means).shape(0);
    if (c.ndim() != 2 || n > std::numeric_limits<int>::max())
        throw py::value_error("channels must have two dimensions");
    out.scene = {view(means, {n, 3}, "means"),
                 view(quaternions, {n, 4}, "quaternions"),
                 view(scales, {n, 3}, "scales"),
                 view(opacities, {n}, "opacities"),
                 view(channels, {n, c.shape(1)}, "channels"),
                 static_cast<int>(n),
                 static_cast<int>(c.shape(1))};
    return out;
}

splat::View make_view(const std::array<double, 12>& cam_from_world,
                      const std::array<double, 4>& intrinsics,
                      const std::array<double, 4>& slope_limits, int width, int height) {
    splat::View v{};
    for (int i = 0; i < 3; ++i) {
        for (int j = 0; j < 3; ++j) v.r[3 * i + j] = cam_from_world[4 * i + j];
        v.t[i] = cam_from_world[4 * i + 3];
    }
    v.fx = intrinsics[0], v.fy = intrinsics[1], v.cx = intrinsics[2], v.cy = intrinsics[3];
    v.x_min = slope_limits[0], v.x_max = slope_limits[1];
    v.y_min = slope_limits[2], v.y_max = slope_limits[3];
    v.width = width, v.height = height;
    return v;
}

splat::Options make_options(double near, bool antialias, bool keep, int threads,
                            const std::string& kernels) {
    splat::Options o;
    o.near = near;
    o.antialias = antialias;
    o.keep = keep;
    o.threads = threads;
    for (const char* name : {"auto", "avx512", "avx2", "baseline"}) {
        if (kernels == name) {
            o.kernels = name;
            return o;
        }
    }
    throw py::value_error("unknown kernels '" + kernels + "'");
}

Floats zeros(const Shape& shape) {
    Floats out(shape);
    std::fill_n(out.mutable_data(), out.size(), 0.0f);
    return out;
}

py::tuple rasterize(const SplatScene& scene, const splat::View& v, const py::object& background,
                    const splat::Options& options) {
    const py::ssize_t n = scene.scene.n, channels = scene.scene.channel_count;
    const float* behind = view(background, {channels}, "background");
    Floats image(Shape{v.height, v.width, channels}), alpha(Shape{v.height, v.width}),
        transmittance(Shape{v.height, v.width}), depth(Shape{v.height, v.width}), weights(n),
        means2d(Shape{n, 2});
    py::array_t<std::int32_t> radii(n);
    std::int64_t pairs = 0;
    const splat::Image out{image.mutable_data(),         alpha.mutable_data(),
                           transmittance.mutable_data(), depth.mutable_data(),
                           weights.mutable_data(),       means2d.mutable_data(),
                           radii.mutable_data(),         &pairs};
    splat::StatePtr state;
    {
        py::gil_scoped_release release;
        state = splat::rasterize(scene.scene, v, behind, options, out);
    }
    py::object kept = py::none();
    if (state) {
        kept = py::capsule(state.release(), "reloc.splat.State",
                           [](void* p) { splat::StateDeleter()(static_cast<splat::State*>(p)); });
    }
    return py::make_tuple(kept, image, alpha, transmittance, depth, weights, means2d, radii, pairs);
}

py::tuple rasterize_backward(const py::capsule& state, const SplatScene& scene,
                             const splat::View& v, const py::object& background,
                             const py::object& grad_image, const py::object& grad_alpha,
                             const py::object& grad_depth, bool channels_wanted,
                             bool geometry_wanted, int geometry_channels, int threads) {
    const py::ssize_t n = scene.scene.n, channels = scene.scene.channel_count;
    if (std::string(state.name()) != "reloc.splat.State")
        throw py::type_error("state must come from splat_rasterize");
    if (geometry_channels < 0 || geometry_channels > channels)
        throw py::value_error("geometry_channels must lie between 0 and the number of channels");
    const splat::ImageGradients in{view(grad_image, {v.height, v.width, channels}, "grad_image"),
                                   view(grad_alpha, {v.height, v.width}, "grad_alpha"),
                                   view(grad_depth, {v.height, v.width}, "grad_depth")};
    const float* behind = view(background, {channels}, "background");
    py::list arrays;
    const auto wanted = [&](bool yes, const Shape& shape) -> float* {
        if (!yes) {
            arrays.append(py::none());
            return nullptr;
        }
        Floats array = zeros(shape);
        arrays.append(array);
        return array.mutable_data();
    };
    py::array_t<double> pose(12);
    splat::SceneGradients out;
    out.channels = wanted(channels_wanted, {n, channels});
    out.means = wanted(geometry_wanted, {n, 3});
    out.quaternions = wanted(geometry_wanted, {n, 4});
    out.scales = wanted(geometry_wanted, {n, 3});
    out.opacities = wanted(geometry_wanted, {n});
    out.means2d = wanted(geometry_wanted, {n, 2});
    out.means2d_abs = wanted(geometry_wanted, {n, 2});
    out.pose = pose.mutable_data();
    const splat::State* kept = state;
    {
        py::gil_scoped_release release;
        splat::rasterize_backward(*kept, scene.scene, v, behind, geometry_channels, threads, in,
                                  out);
    }
    arrays.append(pose);
    return py::tuple(arrays);
}

py::tuple accumulate(const SplatScene& scene, const splat::View& v, const py::object& features,
                     const splat::Options& options) {
    if (!py::isinstance<py::array>(features) ||
        py::reinterpret_borrow<py::array>(features).ndim() != 3)
        throw py::type_error("features must be a float32 NumPy array of three dimensions");
    const py::ssize_t n = scene.scene.n,
                      channels = py::reinterpret_borrow<py::array>(features).shape(2);
    const float* from = view(features, {v.height, v.width, channels}, "features");
    Floats sums = zeros({n, channels}), weights = zeros({n});
    float *to_sums = sums.mutable_data(), *to_weights = weights.mutable_data();
    {
        py::gil_scoped_release release;
        splat::accumulate(scene.scene, v, from, static_cast<int>(channels), options, to_sums,
                          to_weights);
    }
    return py::make_tuple(weights, sums);
}

}  // namespace

void bind_splat(py::module_& m) {
    py::class_<SplatScene>(m, "SplatScene")
        .def(py::init(&make_scene), "means"_a, "quaternions"_a, "scales"_a, "opacities"_a,
             "channels"_a);
    py::class_<splat::View>(m, "SplatView")
        .def(py::init(&make_view), "cam_from_world"_a, "intrinsics"_a, "slope_limits"_a, "width"_a,
             "height"_a);
    py::class_<splat::Options>(m, "SplatOptions")
        .def(py::init(&make_options), "near"_a, "antialias"_a, "keep"_a, "threads"_a,
             "kernels"_a = "auto");
    m.def("splat_rasterize", &rasterize, "scene"_a, "view"_a, "background"_a, "options"_a);
    m.def("splat_backward", &rasterize_backward, "state"_a, "scene"_a, "view"_a, "background"_a,
          "grad_image"_a, "grad_alpha"_a, "grad_depth"_a, "channels_wanted"_a, "geometry_wanted"_a,
          "geometry_channels"_a, "threads"_a);
    m.def("splat_accumulate", &accumulate, "scene"_a, "view"_a, "features"_a, "options"_a);
}

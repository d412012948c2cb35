// Bindings of the hash grid. Shapes, types and finiteness are checked here, rows by construction:
// the index of a corner is below the size of its level.
#include "reloc/hashgrid.hpp"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cmath>
#include <string>

namespace py = pybind11;
using namespace pybind11::literals;

namespace {

using Floats = py::array_t<float>;
using Integers = py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>;

void require(bool ok, const char* message) {
    if (!ok) throw py::value_error(message);
}

void check_matrix(const Floats& array, py::ssize_t rows, py::ssize_t columns, const char* name) {
    if (array.ndim() != 2 || (rows >= 0 && array.shape(0) != rows) || array.shape(1) != columns ||
        !(array.flags() & py::array::c_style))
        throw py::value_error(std::string(name) + " has the wrong shape or is not C-contiguous");
}

/// A layout as Python gives it, checked so that every corner's row lies inside the table.
class Grid {
  public:
    Grid(Integers resolutions, Integers sizes, int channels)
        : resolutions_(std::move(resolutions)), sizes_(std::move(sizes)), offsets_(sizes_.size()) {
        require(resolutions_.ndim() == 1 && sizes_.ndim() == 1 &&
                    resolutions_.size() == sizes_.size() && sizes_.size() > 0,
                "resolutions and sizes must be vectors of one length");
        require(channels > 0, "channels must be positive");
        for (py::ssize_t i = 0; i < sizes_.size(); ++i) {
            const std::int64_t n = resolutions_.at(i), size = sizes_.at(i);
            require(n >= 1 && n < (1 << 20), "resolutions must be in 1 .. 2^20");
            const bool dense = (n + 1) * (n + 1) * (n + 1) == size;
            require(size >= 1 &&
                        (dense || ((size & (size - 1)) == 0 && size < (n + 1) * (n + 1) * (n + 1))),
                    "sizes must be (resolution + 1)^3 or a smaller power of two");
            offsets_.mutable_at(i) = rows_;
            rows_ += size;
        }
        layout_ = {static_cast<int>(sizes_.size()), channels, resolutions_.data(), sizes_.data(),
                   offsets_.data()};
    }

    Floats encode(const Floats& positions, const Floats& table) const {
        const py::ssize_t n = check_positions(positions);
        check_matrix(table, rows_, layout_.channels, "table");
        Floats out({n, width()});
        float* target = out.mutable_data();
        py::gil_scoped_release release;
        reloc::hashgrid_encode(layout_, positions.data(), static_cast<std::size_t>(n), table.data(),
                               target);
        return out;
    }

    void backward(const Floats& positions, const Floats& grad, Floats& grad_table) const {
        const py::ssize_t n = check_positions(positions);
        check_matrix(grad, n, width(), "grad");
        check_matrix(grad_table, rows_, layout_.channels, "grad_table");
        float* target = grad_table.mutable_data();
        py::gil_scoped_release release;
        reloc::hashgrid_backward(layout_, positions.data(), static_cast<std::size_t>(n),
                                 grad.data(), target);
    }

    Floats backward_positions(const Floats& positions, const Floats& table,
                              const Floats& grad) const {
        const py::ssize_t n = check_positions(positions);
        check_matrix(table, rows_, layout_.channels, "table");
        check_matrix(grad, n, width(), "grad");
        Floats out({n, py::ssize_t{3}});
        float* target = out.mutable_data();
        py::gil_scoped_release release;
        reloc::hashgrid_backward_positions(layout_, positions.data(), static_cast<std::size_t>(n),
                                           table.data(), grad.data(), target);
        return out;
    }

  private:
    py::ssize_t width() const {
        return static_cast<py::ssize_t>(layout_.levels) * layout_.channels;
    }

    static py::ssize_t check_positions(const Floats& positions) {
        check_matrix(positions, -1, 3, "positions");
        const float* values = positions.data();
        for (py::ssize_t i = 0; i < positions.size(); ++i)
            require(values[i] >= 0 && values[i] <= 1, "positions must lie in the unit cube");
        return positions.shape(0);
    }

    Integers resolutions_, sizes_, offsets_;
    std::int64_t rows_ = 0;
    reloc::HashGridLayout layout_;
};

}  // namespace

void bind_hashgrid(py::module_& m) {
    py::class_<Grid>(m, "HashGrid")
        .def(py::init<Integers, Integers, int>(), "resolutions"_a, "sizes"_a, "channels"_a)
        .def("encode", &Grid::encode, py::arg("positions").noconvert(),
             py::arg("table").noconvert())
        .def("backward", &Grid::backward, py::arg("positions").noconvert(),
             py::arg("grad").noconvert(), py::arg("grad_table").noconvert())
        .def("backward_positions", &Grid::backward_positions, py::arg("positions").noconvert(),
             py::arg("table").noconvert(), py::arg("grad").noconvert());
}

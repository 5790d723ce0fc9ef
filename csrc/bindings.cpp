// The only file that names Python. A torch tensor becomes a View by asking its own attributes, so no torch headers are
// needed and one build serves every torch version. Every kernel runs with the GIL released.
#include <pybind11/pybind11.h>

#include "attention/attention.h"
#include "block/block.h"
#include "activation/activation.h"
#include "common/isa.h"
#include "common/pool.h"
#include "common/view.h"
#include "fp8/fp8.h"
#include "heads/heads.h"
#include "linear/linear.h"
#include "linear/pairs.h"
#include "logprob/logprob.h"
#include "moe/moe.h"
#include "norm/norm.h"
#include "rope/rope.h"
#include "sampling/sampling.h"
#include "scan/gae.h"
#if ST_CUDA
#include "scan/gae_cuda.h"
#endif

namespace py = pybind11;
using seedthink::Dtype;
using seedthink::View;

namespace {

// Names of torch's tensor interface, interned once; dtype objects are singletons and compare by address.
struct TorchNames {
  py::str data_ptr{"data_ptr"}, shape{"shape"}, stride{"stride"}, dtype{"dtype"}, is_cuda{"is_cuda"};
  PyObject* dtypes[10] = {};
  TorchNames() {
    py::module_ torch = py::module_::import("torch");
    const std::pair<Dtype, const char*> table[] = {
        {Dtype::f32, "float32"}, {Dtype::bf16, "bfloat16"}, {Dtype::f64, "float64"},          {Dtype::i32, "int32"},
        {Dtype::i64, "int64"},   {Dtype::u8, "uint8"},      {Dtype::b8, "bool"},              {Dtype::f8e4m3, "float8_e4m3fn"},
        {Dtype::f8e5m2, "float8_e5m2"}};
    for (const auto& [dtype, name] : table) dtypes[static_cast<int>(dtype)] = py::object(torch.attr(name)).release().ptr();
  }
};

const TorchNames& torch_names() {
  static const TorchNames* names = new TorchNames;  // never destroyed: the interpreter may be gone before us
  return *names;
}

bool read_sizes(PyObject* sequence, int64_t* out, int& dims) {
  const Py_ssize_t n = PyTuple_Size(sequence);
  if (n < 0 || n > View::kMaxDims) return false;
  for (Py_ssize_t i = 0; i < n; ++i) out[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(sequence, i));
  dims = static_cast<int>(n);
  return true;
}

}  // namespace

namespace pybind11::detail {

template <>
struct type_caster<View> {
  PYBIND11_TYPE_CASTER(View, const_name("torch.Tensor | None"));

  bool load(handle source, bool) {
    if (source.is_none()) return true;
    if (!PyObject_HasAttr(source.ptr(), torch_names().data_ptr.ptr())) return false;
    const TorchNames& names = torch_names();
    object pointer = reinterpret_steal<object>(PyObject_CallMethodNoArgs(source.ptr(), names.data_ptr.ptr()));
    object shape = reinterpret_steal<object>(PyObject_GetAttr(source.ptr(), names.shape.ptr()));
    object stride = reinterpret_steal<object>(PyObject_CallMethodNoArgs(source.ptr(), names.stride.ptr()));
    object dtype = reinterpret_steal<object>(PyObject_GetAttr(source.ptr(), names.dtype.ptr()));
    object cuda = reinterpret_steal<object>(PyObject_GetAttr(source.ptr(), names.is_cuda.ptr()));
    if (!pointer || !shape || !stride || !dtype || !cuda) throw error_already_set();
    value.pointer = PyLong_AsVoidPtr(pointer.ptr());
    value.cuda = cuda.ptr() == Py_True;
    int dims = 0;
    if (!read_sizes(shape.ptr(), value.size, value.dims) || !read_sizes(stride.ptr(), value.stride, dims))
      throw value_error("a tensor argument has more than 6 dimensions");
    for (int i = 1; i < 10; ++i)
      if (dtype.ptr() == names.dtypes[i]) value.dtype = static_cast<Dtype>(i);
    if (value.dtype == Dtype::none) throw value_error("a tensor argument has a dtype that no kernel takes");
    return true;
  }
};

}  // namespace pybind11::detail

namespace {

using release = py::call_guard<py::gil_scoped_release>;

py::dict build_info() {
  py::dict info;
  info["compiler"] = ST_COMPILER;
  info["amx"] = seedthink::amx_note();
  info["cuda"] = static_cast<bool>(ST_CUDA);
  info["cuda_note"] = ST_CUDA_NOTE;
  info["cuda_archs"] = ST_CUDA_ARCHS;
  return info;
}

}  // namespace

// Registers a kernel that exists once per instruction set.
#define ST_DEF(function) m.def(#function, ST_PICK(function), release())

PYBIND11_MODULE(_C, m) {
  m.doc() = "seedthink's native kernels; use them through seedthink.kernels";
  m.def("build_info", &build_info);
  m.def("isa", &seedthink::device_class);
  m.def("emulate_amx", &seedthink::emulate_amx);
  m.def("threads", &seedthink::threads);
  m.def("set_threads", &seedthink::set_threads);

  // linear
  ST_DEF(pack_panels);
  ST_DEF(linear_forward);
  ST_DEF(linear_weight_grad);

  // attention
  ST_DEF(attend_packed_forward);
  ST_DEF(attend_packed_backward);
  ST_DEF(attend_paged);
  ST_DEF(write_pages);

  // halves of a block, for generation
  ST_DEF(attention_step);
  ST_DEF(dense_step);
  ST_DEF(sparse_step);

  // moe
  ST_DEF(route_forward);
  ST_DEF(route_backward);
  ST_DEF(experts_forward);
  ST_DEF(experts_backward);

  // fp8
  ST_DEF(fp8_quantize);
  ST_DEF(fp8_dequantize);
  ST_DEF(fp8_feedback);
  ST_DEF(fp8_linear);
  ST_DEF(fp8_linear_pitch);
  m.def("fp8_delta_count", &seedthink::fp8_delta_count, release());
  m.def("fp8_delta_write", &seedthink::fp8_delta_write, release());
  m.def("fp8_delta_apply", &seedthink::fp8_delta_apply, release());

  // heads of the model
  ST_DEF(row_logprob_forward);
  ST_DEF(row_logprob_backward);
  ST_DEF(sample_rows);

  // rows
  ST_DEF(rope_turn);
  ST_DEF(split_heads_forward);
  ST_DEF(split_heads_backward);
  ST_DEF(swiglu_forward);
  ST_DEF(swiglu_backward);

  // scan
  ST_DEF(gae_scan);
#if ST_CUDA
  m.def("gae_cuda_workspace", &seedthink::gae_cuda_workspace);
  m.def("gae_scan_cuda", &seedthink::gae_scan_cuda, release());
#endif

  // norm
  ST_DEF(rms_norm_forward);
  ST_DEF(rms_norm_backward);
  ST_DEF(add_rms_norm_forward);
  ST_DEF(add_rms_norm_backward);
}

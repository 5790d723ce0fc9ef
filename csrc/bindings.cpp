// The only file that names Python. A torch tensor becomes a View through DLPack's exchange table, so no torch headers are
// needed and one build serves every torch version. Every kernel runs with the GIL released.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>

#include "attention/attention.h"
#include "block/block.h"
#include "activation/activation.h"
#include "balance/balance.h"
#include "common/isa.h"
#include "common/pool.h"
#include "common/tuning.h"
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
#include "scan/whiten.h"
#if ST_CUDA
#include "fp8/quantize_cuda.h"
#include "moe/permute_cuda.h"
#include "moe/route_cuda.h"
#include "scan/gae_cuda.h"
#endif

namespace py = pybind11;
using seedthink::Dtype;
using seedthink::View;

namespace {

// What torch hands out for every tensor without a call into Python: DLPack 1.3's exchange table (dlpack.h of
// dmlc/dlpack), which `torch.Tensor.__dlpack_c_exchange_api__` holds from torch 2.11 on. Only what is used is named.
struct DLTensor {
  void* data;
  int32_t device_type, device_id;
  int32_t dims;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *shape, *strides;
  uint64_t byte_offset;
};
struct ExchangeTable {
  uint32_t major, minor;
  void* older;
  void* managed[3];
  int (*describe)(void* tensor, DLTensor* out);  // not owning; -1 with a Python exception set
};
constexpr int kOnCpu = 1, kOnCuda = 2, kOnCudaHost = 3;  // pinned memory is the CPU's

struct Torch {
  PyTypeObject* tensor;
  const ExchangeTable* table;
  Torch() {
    py::object type = py::module_::import("torch").attr("Tensor");
    py::capsule capsule = type.attr("__dlpack_c_exchange_api__");
    table = static_cast<const ExchangeTable*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (table == nullptr) throw py::error_already_set();
    if (table->major != 1 || table->describe == nullptr)
      throw std::runtime_error("seedthink: this torch exchanges tensors by another version of DLPack; it needs torch >= 2.11");
    tensor = reinterpret_cast<PyTypeObject*>(type.release().ptr());
  }
};

const Torch& torch() {
  static const Torch* found = new Torch;  // never destroyed: the interpreter may be gone before us
  return *found;
}

Dtype dtype_of(const DLTensor& tensor) {
  struct Known {
    uint8_t code, bits;
    Dtype dtype;
  };
  static constexpr Known kKnown[] = {{2, 32, Dtype::f32},    {4, 16, Dtype::bf16}, {2, 64, Dtype::f64},
                                     {0, 32, Dtype::i32},    {0, 64, Dtype::i64},  {1, 8, Dtype::u8},
                                     {6, 8, Dtype::b8},      {10, 8, Dtype::f8e4m3}, {12, 8, Dtype::f8e5m2}};
  for (const Known& known : kKnown)
    if (tensor.code == known.code && tensor.bits == known.bits && tensor.lanes == 1) return known.dtype;
  throw py::value_error("a tensor argument has a dtype that no kernel takes");
}

View view_of(const DLTensor& tensor) {
  View view;
  if (tensor.dims > View::kMaxDims) throw py::value_error("a tensor argument has more than 6 dimensions");
  if (tensor.device_type != kOnCpu && tensor.device_type != kOnCuda && tensor.device_type != kOnCudaHost)
    throw py::value_error("a tensor argument is on a device that no kernel runs on");
  view.pointer = static_cast<char*>(tensor.data) + tensor.byte_offset;
  view.dims = tensor.dims;
  std::copy_n(tensor.shape, tensor.dims, view.size);
  std::copy_n(tensor.strides, tensor.dims, view.stride);
  view.dtype = dtype_of(tensor);
  view.cuda = tensor.device_type == kOnCuda;
  if (view.cuda) view.device = tensor.device_id;
  return view;
}

}  // namespace

namespace pybind11::detail {

template <>
struct type_caster<View> {
  PYBIND11_TYPE_CASTER(View, const_name("torch.Tensor | None"));

  bool load(handle source, bool) {
    if (source.is_none()) return true;
    if (!PyType_IsSubtype(Py_TYPE(source.ptr()), torch().tensor)) return false;
    DLTensor tensor;
    if (torch().table->describe(source.ptr(), &tensor) != 0) throw error_already_set();
    value = view_of(tensor);
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
  info["sources"] = seedthink::sources();
  return info;
}

}  // namespace

// Registers a kernel that exists once per instruction set.
#define ST_DEF(function) m.def(#function, ST_PICK(function), release())
#define ST_DEF_CUDA(function) m.def(#function, &seedthink::function, release())

PYBIND11_MODULE(_C, m) {
  m.doc() = "seedthink's native kernels; use them through seedthink.kernels";
  m.def("build_info", &build_info);
  m.def("isa", &seedthink::device_class);
  m.def("emulate_amx", &seedthink::emulate_amx);
  m.def("threads", &seedthink::threads);
  m.def("set_threads", &seedthink::set_threads);

  // launch settings that a tuner may move, and the time and load it goes by
  m.def("tune", &seedthink::tune, py::arg("op"), py::arg("threads") = 0, py::arg("grain") = 0, py::arg("block") = 0);
  m.def("tuning", &seedthink::tuning);
  m.def("watch", &seedthink::watch);
  m.def("watched", &seedthink::watched);
  m.def("imbalance", &seedthink::imbalance);

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
  ST_DEF(permute_forward);
  ST_DEF(permute_backward);
  ST_DEF(unpermute_forward);
  ST_DEF(unpermute_backward);
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
  ST_DEF(logprob_columns);
  ST_DEF(logprob_blocks);
  ST_DEF(logprob_join);
  ST_DEF(logprob_finish);
  ST_DEF(logprob_columns_backward);
  ST_DEF(sample_rows);

  // rows
  ST_DEF(rope_turn);
  ST_DEF(split_heads_forward);
  ST_DEF(split_heads_backward);
  ST_DEF(swiglu_forward);
  ST_DEF(swiglu_backward);

  // scan
  ST_DEF(gae_scan);
  ST_DEF(advantage_moments);
  ST_DEF(shift_and_scale);

  // norm
  ST_DEF(rms_norm_forward);
  ST_DEF(rms_norm_backward);
  ST_DEF(add_rms_norm_forward);
  ST_DEF(add_rms_norm_backward);

  // balance
  m.def("karmarkar_karp", &seedthink::karmarkar_karp, release());
  m.def("within_budget", &seedthink::within_budget, release());

#if ST_CUDA
  // the same operations on a CUDA device
  ST_DEF_CUDA(gae_scan_cuda);
  ST_DEF_CUDA(route_forward_cuda);
  ST_DEF_CUDA(route_backward_cuda);
  ST_DEF_CUDA(permute_forward_cuda);
  ST_DEF_CUDA(permute_backward_cuda);
  ST_DEF_CUDA(unpermute_forward_cuda);
  ST_DEF_CUDA(unpermute_backward_cuda);
  ST_DEF_CUDA(fp8_quantize_cuda);
  ST_DEF_CUDA(fp8_permute_cuda);
  ST_DEF_CUDA(fp8_rms_norm_cuda);
  m.def("gae_cuda_workspace", &seedthink::gae_cuda_workspace);
  m.def("route_cuda_workspace", &seedthink::route_cuda_workspace);
#endif
}

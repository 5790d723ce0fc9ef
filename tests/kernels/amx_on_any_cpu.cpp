// Runs the AMX code of csrc/linear on a CPU that has no AMX: each tile instruction faults, and the handler of SIGILL
// does what Intel's manual says of it. On a CPU that has AMX nothing faults and the instructions themselves run.
//
// Prints "device class", how many instructions were trapped, and one line for each product whose bits differ from those
// of the emulated tiles. The arithmetic below is written apart from csrc/linear/tile.h: fmaf() in fp32, no double.
#include <signal.h>
#include <ucontext.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

// The question of cpuid is answered with yes, after the system has been asked where there is something to ask for.
#define amx_refusal real_amx_refusal
#include "common/amx.cpp"
#undef amx_refusal
namespace seedthink {
const char* amx_refusal() {
  real_amx_refusal();
  return nullptr;
}
}  // namespace seedthink

#include "common/isa.cpp"
#include "common/pool.h"
#include "linear/linear.h"
#include "linear/pairs.cpp"

// One instruction set is built, so one is there to choose.
namespace seedthink::avx2 {
TileCheck check_tiles() { return {"not built", false}; }
}  // namespace seedthink::avx2
namespace seedthink::portable {
TileCheck check_tiles() { return {"not built", false}; }
}  // namespace seedthink::portable

namespace {

struct Tile {
  uint8_t row[16][64];
};
struct Machine {
  bool live;
  uint16_t bytes[16];
  uint8_t rows[16];
  Tile tile[8];
};
thread_local Machine machine;
std::atomic<long> trapped{0}, configured{0}, released{0};

[[noreturn]] void stop(const char* what) {
  std::fprintf(stderr, "%s\n", what);
  std::_Exit(3);
}

int64_t value(const ucontext_t* context, int number) {
  static const int kOrder[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                 REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  return context->uc_mcontext.gregs[kOrder[number]];
}

float flushed(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.f, x) : x; }

float half(const uint8_t* at) {
  uint16_t bits;
  std::memcpy(&bits, at, 2);
  const uint32_t wide = uint32_t{bits} << 16;
  float x;
  std::memcpy(&x, &wide, 4);
  return flushed(x);
}

void multiply(int c, int a, int b) {
  Machine& m = machine;
  const int rows = m.rows[c], pairs = m.bytes[a] / 4, columns = m.bytes[c] / 4;
  if (rows != m.rows[a] || pairs != m.rows[b] || m.bytes[b] != m.bytes[c]) stop("shapes do not fit");
  for (int r = 0; r < rows; ++r)
    for (int n = 0; n < columns; ++n) {
      float even = 0, odd = 0, sum;
      for (int k = 0; k < pairs; ++k) {
        even = flushed(std::fma(half(m.tile[a].row[r] + 4 * k), half(m.tile[b].row[k] + 4 * n), even));
        odd = flushed(std::fma(half(m.tile[a].row[r] + 4 * k + 2), half(m.tile[b].row[k] + 4 * n + 2), odd));
      }
      std::memcpy(&sum, m.tile[c].row[r] + 4 * n, 4);
      sum = flushed(flushed(sum) + flushed(even + odd));
      std::memcpy(m.tile[c].row[r] + 4 * n, &sum, 4);
    }
}

void handle(int, siginfo_t*, void* raw) {
  auto* context = static_cast<ucontext_t*>(raw);
  auto& rip = context->uc_mcontext.gregs[REG_RIP];
  const auto* code = reinterpret_cast<const uint8_t*>(rip);
  if (code[0] != 0xc4 || (code[1] & 0x1f) != 2) stop("an illegal instruction that is no tile instruction");
  const int prefix = code[2] & 3, source = ~(code[2] >> 3) & 7, opcode = code[3], modrm = code[4];
  const int mod = modrm >> 6, reg = modrm >> 3 & 7, rm = modrm & 7;
  Machine& m = machine;
  ++trapped;
  if (opcode == 0x5c && prefix == 2 && mod == 3) {
    if (!m.live) stop("tdpbf16ps without a configuration");
    multiply(reg, rm, source);
    rip += 5;
    return;
  }
  if (opcode == 0x49 && mod == 3) {
    if (prefix == 3 && m.live) {
      m.tile[reg] = Tile{};
    } else if (prefix == 0) {
      m = Machine{};
      ++released;
    } else {
      stop("tilezero without a configuration");
    }
    rip += 5;
    return;
  }
  // A memory operand.
  int length = 5;
  int64_t address = 0, stride = 0;
  int base = rm;
  const bool indexed = rm == 4;
  if (indexed) {
    const int sib = code[length++], index = (sib >> 3 & 7) | (code[1] & 0x40 ? 0 : 8);
    base = sib & 7;
    if (index != 4) stride = value(context, index) << (sib >> 6);
  }
  int32_t offset = 0;
  if (mod == 1) offset = static_cast<int8_t>(code[length]), length += 1;
  const bool bare = mod == 0 && base == 5;
  if (mod == 2 || bare) std::memcpy(&offset, code + length, 4), length += 4;
  if (!bare) address = value(context, base | (code[1] & 0x20 ? 0 : 8));
  if (bare && !indexed) address = rip + length;
  address += offset;
  auto* at = reinterpret_cast<uint8_t*>(address);
  if (opcode == 0x49 && prefix == 0 && reg == 0) {
    if (at[0] != 1 || at[1] != 0) stop("ldtilecfg: palette or start row");
    m = Machine{};
    m.live = true;
    std::memcpy(m.bytes, at + 16, sizeof m.bytes);
    std::memcpy(m.rows, at + 48, sizeof m.rows);
    for (int t = 0; t < 16; ++t)
      if (m.rows[t] > 16 || m.bytes[t] > 64 || (t > 7 && (m.rows[t] || m.bytes[t]))) stop("ldtilecfg: a shape");
    ++configured;
  } else if (opcode == 0x4b && indexed && m.live && m.rows[reg] > 0) {
    if (prefix == 3) {
      m.tile[reg] = Tile{};
      for (int r = 0; r < m.rows[reg]; ++r) std::memcpy(m.tile[reg].row[r], at + r * stride, m.bytes[reg]);
    } else if (prefix == 2) {
      for (int r = 0; r < m.rows[reg]; ++r) std::memcpy(at + r * stride, m.tile[reg].row[r], m.bytes[reg]);
    } else {
      stop("an unexpected tile instruction");
    }
  } else {
    stop("an unexpected tile instruction, or one without a configuration");
  }
  rip += length;
}

using seedthink::Dtype;
using seedthink::View;

template <typename T>
View view(std::vector<T>& data, Dtype dtype, std::initializer_list<int64_t> sizes) {
  View v;
  v.pointer = data.data(), v.dtype = dtype;
  for (int64_t size : sizes) v.size[v.dims++] = size;
  for (int64_t i = v.dims - 1, stride = 1; i >= 0; stride *= v.size[i--]) v.stride[i] = stride;
  return v;
}

std::vector<float> draw(int64_t count, float scale) {
  static uint32_t state = 7;
  std::vector<float> x(count);
  for (float& each : x) {
    state = state * 1664525u + 1013904223u;
    each = scale * (static_cast<float>(state >> 8) * 0x1p-23f - 1.f);
  }
  return x;
}

// Product, then weight gradient, of T rows with K columns and N rows of weight.
std::vector<float> both(int64_t T, int64_t K, int64_t N, std::vector<float>& x, std::vector<float>& w,
                        std::vector<float>& dy) {
  namespace kernels = seedthink::avx512;
  const int64_t P = (N + 63) / 64, pairs = (K + 1) / 2;
  std::vector<uint16_t> panels(P * pairs * 128);
  std::vector<float> y(T * N), dw(N * K);
  const View packed = view(panels, Dtype::bf16, {1, P, pairs, 64, 2});
  kernels::pack_panels(view(w, Dtype::f32, {1, N, K}), false, packed);
  kernels::linear_forward(view(x, Dtype::f32, {T, K}), packed, view(y, Dtype::f32, {T, N}));
  kernels::linear_weight_grad(view(dy, Dtype::f32, {T, N}), view(x, Dtype::f32, {T, K}), true,
                              view(dw, Dtype::f32, {N, K}));
  y.insert(y.end(), dw.begin(), dw.end());
  return y;
}

}  // namespace

int main() {
  struct sigaction action = {};
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGILL, &action, nullptr);
  std::printf("%s\n", seedthink::device_class());
  seedthink::set_threads(2);
  const int64_t shapes[][3] = {{1, 64, 64}, {5, 33, 70}, {16, 32, 16},  {17, 1, 1},     {33, 100, 130},
                               {40, 31, 65}, {3, 0, 5}, {200, 96, 192}, {600, 17, 20}};
  // The second scale leads to products and sums around the smallest normal number.
  for (int i = 0; i < 18; ++i) {
    const auto& [T, K, N] = shapes[i / 2];
    const float scale = i % 2 == 0 ? 1.f : 0x1p-62f;
    std::vector<float> x = draw(T * K, scale), w = draw(N * K, scale), dy = draw(T * N, scale);
    const std::vector<float> hardware = both(T, K, N, x, w, dy);
    seedthink::emulate_amx(true);
    const std::vector<float> emulated = both(T, K, N, x, w, dy);
    seedthink::emulate_amx(false);
    if (std::memcmp(hardware.data(), emulated.data(), hardware.size() * 4) != 0)
      std::printf("different bits: T %ld, K %ld, N %ld, scale %g\n", long(T), long(K), long(N), scale);
  }
  std::printf("%ld instructions trapped\n", trapped.load());
  if (configured != released) std::printf("%ld configurations, %ld releases\n", configured.load(), released.load());
}

// Backward. Weights are recomputed from the saved log-sum-exp; one task owns a sequence and a KV head, so every sum has
// one order whatever the number of threads.
//   dV = P^T dO, dP = dO V^T, dS = P * (dP - rowsum(dO * O)), dQ = scale dS K, dK = scale dS^T Q
#include "attention/attention.h"
#include "attention/shapes.h"
#include "attention/tile.h"
#include "common/pool.h"

namespace seedthink::ST_ISA {

using namespace attention;

namespace {

constexpr int64_t kPositions = 16;            // query positions of a row block
constexpr int64_t kHeads = 4;                 // query heads of a row block
constexpr int64_t kRows = kPositions * kHeads;
constexpr int64_t kKeys = 64;                 // keys of a tile

// One sequence and one KV head, copied so that every product reads dense rows. The first `shared` keys are a prefix's:
// no query of this sequence stands there.
struct Head {
  int64_t shared, keys, H;
  float *k_panels, *v_panels, *k_rows;  // [page][H][16], [page][H][16], [keys][H]
  float *dk, *dv;                       // [keys][H]
};

// Up to kRows query rows, position-major within a head: row = head * positions + position.
struct Block {
  int64_t positions, heads, first;  // the first position of the sequence in this block
  const float* q;                   // scaled, [rows][H]
  const float* grad;                // dO, [rows][H]
  float* dq;                        // [rows][H]
  float lse[kRows], delta[kRows];
};

float dot(const float* a, const float* b, int64_t n) {
  vf acc = splat(0.f);
  for (int64_t i = 0; i < n; i += kLanes) acc = fma(load(a + i), load(b + i), acc);
  return sum(acc);
}

// p becomes the weights, ds = p * (dp - delta); keys after a row's position get zero in both.
void weights(const Block& block, int64_t start, int64_t keys, float* p, float* ds) {
  const int64_t rows = block.positions * block.heads;
  constexpr vi lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t last = block.first + i % block.positions - start;  // the last key of the tile that the row sees
    const vf lse = splat(block.lse[i]), delta = splat(block.delta[i]);
    for (int64_t j = 0; j < keys; j += kLanes) {
      float* at_p = p + i * kKeys + j;
      float* at_ds = ds + i * kKeys + j;
      const vf shown = exp(load(at_p) - lse);
      const vf hidden = splat(0.f);
      const vi limit = lane - lane + static_cast<int32_t>(last - j);
      const vf weight = lane <= limit ? shown : hidden;
      store(at_p, weight);
      store(at_ds, lane <= limit ? weight * (load(at_ds) - delta) : hidden);
    }
  }
}

void backward_tile(const Head& head, const Block& block, int64_t start, float* p, float* ds) {
  const int64_t H = head.H, rows = block.positions * block.heads, vectors = H / kLanes;
  const int64_t seen = block.first + block.positions;
  const int64_t keys = std::min(kKeys, seen - start), pages = (keys + kPage - 1) / kPage;
  const float* k_panel = head.k_panels + start * H;
  const float* v_panel = head.v_panels + start * H;
  const float* k_rows = head.k_rows + start * H;
  product(rows, block.q, H, 1, 0, H, [=](int64_t h, int64_t page) { return k_panel + (page * H + h) * kPage; }, pages, p,
          kKeys, kLanes, false);
  product(rows, block.grad, H, 1, 0, H, [=](int64_t h, int64_t page) { return v_panel + (page * H + h) * kPage; }, pages,
          ds, kKeys, kLanes, false);
  weights(block, start, pages * kPage, p, ds);
  product(rows, ds, kKeys, 1, 0, keys, [=](int64_t key, int64_t j) { return k_rows + key * H + j * kLanes; }, vectors,
          block.dq, H, kLanes, true);
  product(keys, p, 1, kKeys, 0, rows, [&](int64_t row, int64_t j) { return block.grad + row * H + j * kLanes; }, vectors,
          head.dv + start * H, H, kLanes, true);
  product(keys, ds, 1, kKeys, 0, rows, [&](int64_t row, int64_t j) { return block.q + row * H + j * kLanes; }, vectors,
          head.dk + start * H, H, kLanes, true);
}

// The query-side arrays of one sequence, at its first own row and at the first query head of the KV head.
struct Queries {
  const float *q, *grad, *o, *lse;
  float* dq;
  int64_t N;
};

void backward_block(const Head& head, const Queries& in, int64_t first_head, Block& block, float scale, float* q,
                    float* grad, float* p, float* ds) {
  const int64_t H = head.H, rows = block.positions * block.heads;
  const auto at = [&](int64_t i) {
    return (block.first - head.shared + i % block.positions) * in.N + first_head + i / block.positions;
  };
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t row = at(i) * H;
    for (int64_t h = 0; h < H; h += kLanes) {
      store(q + i * H + h, load(in.q + row + h) * splat(scale));
      store(grad + i * H + h, load(in.grad + row + h));
      store(block.dq + i * H + h, splat(0.f));
    }
    block.lse[i] = in.lse[at(i)];
    block.delta[i] = dot(in.grad + row, in.o + row, H);
  }
  block.q = q;
  block.grad = grad;
  for (int64_t start = 0; start < block.first + block.positions; start += kKeys)
    backward_tile(head, block, start, p, ds);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t h = 0; h < H; h += kLanes)
      store(in.dq + at(i) * H + h, load(block.dq + i * H + h) * splat(scale));
}

void backward_head(Head& head, const Queries& in, int64_t heads, float scale, float* buffer) {
  const int64_t H = head.H;
  float *q = buffer, *grad = q + kRows * H, *p = grad + kRows * H, *ds = p + kRows * kKeys;
  Block block;
  block.dq = ds + kRows * kKeys;
  for (int64_t i = 0; i < head.keys * H; ++i) head.dk[i] = head.dv[i] = 0.f;
  for (block.first = head.shared; block.first < head.keys; block.first += kPositions) {
    block.positions = std::min(kPositions, head.keys - block.first);
    for (int64_t first_head = 0; first_head < heads; first_head += kHeads) {
      block.heads = std::min(kHeads, heads - first_head);
      backward_block(head, in, first_head, block, scale, q, grad, p, ds);
    }
  }
}

// Gradients of the keys and values of prefixes, apart for each sequence that has one: sequences of one prefix run on
// several threads, and what they give is added in the order of the sequences.
class PrefixGradients {
 public:
  PrefixGradients(const View& cu_seqlens_B1, const View& prefix_B, int64_t n, int64_t H) : n_(n), H_(H) {
    int64_t rows = 0;
    for (int64_t b = 0; b + 1 < cu_seqlens_B1.size[0]; ++b) {
      sequences_.push_back(sequence_of(cu_seqlens_B1, prefix_B, b));
      first_.push_back(rows);
      rows += sequences_[b].shared;
    }
    dk_.resize(rows * n * H);
    dv_.resize(rows * n * H);
  }

  float* dk(int64_t b, int64_t t, int64_t head) { return dk_.data() + ((first_[b] + t) * n_ + head) * H_; }
  float* dv(int64_t b, int64_t t, int64_t head) { return dv_.data() + ((first_[b] + t) * n_ + head) * H_; }

  void add_to(const View& dk_TnH, const View& dv_TnH) {
    if (dk_.empty()) return;
    const int64_t width = n_ * H_;
    parallel(width / kLanes, 1, [&](int64_t begin, int64_t end) {
      for (size_t b = 0; b < sequences_.size(); ++b)
        for (int64_t t = 0; t < sequences_[b].shared; ++t)
          for (int64_t i = begin * kLanes; i < end * kLanes; i += kLanes) {
            const int64_t from = (first_[b] + t) * width + i, to = (sequences_[b].prefix + t) * width + i;
            store(dk_TnH.as<float>() + to, load(dk_TnH.as<float>() + to) + load(dk_.data() + from));
            store(dv_TnH.as<float>() + to, load(dv_TnH.as<float>() + to) + load(dv_.data() + from));
          }
    });
  }

 private:
  int64_t n_, H_;
  std::vector<Sequence> sequences_;
  std::vector<int64_t> first_;
  std::vector<float> dk_, dv_;
};

}  // namespace

void attend_packed_backward(const View& do_TNH, const View& q_TNH, const View& k_TnH, const View& v_TnH,
                            const View& o_TNH, const View& lse_TN, const View& cu_seqlens_B1, const View& prefix_B,
                            double scale, bool round_to_bf16, const View& dq_TNH, const View& dk_TnH,
                            const View& dv_TnH) {
  check_packed(q_TNH, k_TnH, v_TnH, cu_seqlens_B1, prefix_B);
  const int64_t T = q_TNH.size[0], N = q_TNH.size[1], H = q_TNH.size[2], n = k_TnH.size[1], heads = N / n;
  for (const auto& [what, view] : {std::pair{"do", &do_TNH}, {"o", &o_TNH}, {"dq", &dq_TNH}})
    view->check(what, Dtype::f32, {T, N, H});
  lse_TN.check("lse", Dtype::f32, {T, N});
  dk_TnH.check("dk", Dtype::f32, {T, n, H});
  dv_TnH.check("dv", Dtype::f32, {T, n, H});
  const std::vector<Span> spans = cut(cu_seqlens_B1, prefix_B, std::max<int64_t>(T, 1));
  PrefixGradients before(cu_seqlens_B1, prefix_B, n, H);
  parallel(static_cast<int64_t>(spans.size()) * n, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const Span& span = spans[task / n];
      const int64_t kv = task % n, shared = span.of.shared, keys = span.end;
      const int64_t padded = (keys + kPage - 1) / kPage * kPage;
      float* memory = scratch(padded * H * 5 + kRows * (3 * H + 2 * kKeys));
      Head head{shared, keys, H, memory, memory + padded * H, memory + 2 * padded * H, memory + 3 * padded * H,
                memory + 4 * padded * H};
      const auto rows = [&](const View& x_TnH) {
        return [&span, n, kv, H, x = x_TnH.as<float>()](int64_t t) { return x + (span.of.row(t) * n + kv) * H; };
      };
      key_panels(rows(k_TnH), keys, H, round_to_bf16, head.k_panels);
      key_panels(rows(v_TnH), keys, H, round_to_bf16, head.v_panels);
      dense_rows(rows(k_TnH), keys, H, round_to_bf16, head.k_rows);
      const int64_t at = span.of.begin * N + kv * heads;
      const Queries in{q_TNH.as<float>() + at * H, do_TNH.as<float>() + at * H, o_TNH.as<float>() + at * H,
                       lse_TN.as<float>() + at, dq_TNH.as<float>() + at * H, N};
      backward_head(head, in, heads, static_cast<float>(scale), memory + padded * H * 5);
      for (int64_t t = 0; t < keys; ++t) {
        const int64_t own = (span.of.row(t) * n + kv) * H;
        float* dk = t < shared ? before.dk(span.b, t, kv) : dk_TnH.as<float>() + own;
        float* dv = t < shared ? before.dv(span.b, t, kv) : dv_TnH.as<float>() + own;
        for (int64_t h = 0; h < H; h += kLanes) {
          store(dk + h, load(head.dk + t * H + h));
          store(dv + h, load(head.dv + t * H + h));
        }
      }
    }
  });
  before.add_to(dk_TnH, dv_TnH);
}

}  // namespace seedthink::ST_ISA

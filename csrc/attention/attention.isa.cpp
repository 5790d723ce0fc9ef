// Forward. Packed and paged calls meet in `attend_rows`, so their bits agree by construction.
#include "attention/attention.h"

#include <limits>

#include "attention/shapes.h"
#include "attention/tile.h"
#include "common/tuning.h"

namespace seedthink::ST_ISA {

using namespace attention;

namespace {

constexpr int64_t kTile = 16 * kPage;    // keys between two rescalings of the running softmax
constexpr int64_t kGroup = 8;            // query rows that share a walk over the keys
constexpr int64_t kRange = 512;          // query positions of one task of a packed call

// Where the keys and values of one sequence and one KV head are. A page table of nullptr means pages in order.
template <typename T>
struct Pages {
  const T* k;
  const T* v;
  int64_t page_stride;
  const int32_t* table;
  int64_t H;

  int64_t at(int64_t page) const { return (table ? table[page] : page) * page_stride; }
};

// A few query rows of one KV head, in ascending position. Row i sees the first visible[i] keys.
struct Rows {
  const float* q[kGroup];
  float* o[kGroup];
  float* lse[kGroup];
  int64_t visible[kGroup];
  int64_t count;
};

// One tile of scores of a row becomes weights: returns the factor for what was accumulated before.
float tile_softmax(float* score, int64_t keys, bool first, float& running_max, vf& running_sum) {
  const int64_t vectors = (keys + kLanes - 1) / kLanes;
  vf best = splat(-std::numeric_limits<float>::infinity());
  constexpr vi lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  float* last = score + (vectors - 1) * kLanes;
  store(last, lane < lane - lane + static_cast<int32_t>(keys - (vectors - 1) * kLanes) ? load(last) : best);
  for (int64_t v = 0; v < vectors; ++v) best = max(best, load(score + v * kLanes));
  const float tile_max = reduce_max(best);
  const float new_max = tile_max > running_max ? tile_max : running_max;
  const vf shift = splat(new_max);
  vf total = splat(0.f);
  for (int64_t v = 0; v < vectors; ++v) {
    const vf p = exp(load(score + v * kLanes) - shift);
    store(score + v * kLanes, p);
    total = total + p;
  }
  const float factor = first ? 0.f : exp(running_max - new_max);
  running_sum = first ? total : running_sum * splat(factor) + total;
  running_max = new_max;
  return factor;
}

// out += sum over keys ascending of weight * value.
template <typename T>
void add_values(int64_t rows, const float* weight, int64_t begin, int64_t end, const T* const* v, int64_t H, float* out) {
  product(rows, weight, kTile, 1, begin, end,
          [&](int64_t key, int64_t j) { return v[key / kPage] + (key % kPage) * H + j * kLanes; }, H / kLanes, out, H, kLanes,
          true);
}

// The walk. A row's operations are: scores by one chain over h, then per tile of keys the running softmax, then the
// values key by key. They do not depend on the other rows of the group.
template <typename T>
void attend_rows(const Rows& rows, const Pages<T>& pages, float scale) {
  const int64_t H = pages.H;
  alignas(64) float score[kGroup * kTile];
  alignas(64) float q[kGroup * kMaxHeadDim];
  alignas(64) float out[kGroup * kMaxHeadDim];
  vf sum_of[kGroup];
  float max_of[kGroup];
  for (int64_t i = 0; i < rows.count; ++i) {
    for (int64_t h = 0; h < H; h += kLanes) {
      store(q + i * H + h, load(rows.q[i] + h) * splat(scale));
      store(out + i * H + h, splat(0.f));
    }
    sum_of[i] = splat(0.f);
    max_of[i] = -std::numeric_limits<float>::infinity();
  }
  const int64_t keys = rows.visible[rows.count - 1];
  const T *k[kTile / kPage], *v[kTile / kPage];
  for (int64_t start = 0; start < keys; start += kTile) {
    const int64_t here = keys - start < kTile ? keys - start : kTile;
    const int64_t count = (here + kPage - 1) / kPage;
    for (int64_t p = 0; p < count; ++p) {
      const int64_t offset = pages.at(start / kPage + p);
      k[p] = pages.k + offset;
      v[p] = pages.v + offset;
    }
    product(rows.count, q, H, 1, 0, H, [&](int64_t h, int64_t p) { return k[p] + h * kPage; }, count, score, kTile,
            kLanes, false);
    int64_t seen[kGroup];
    for (int64_t i = 0; i < rows.count; ++i) {
      const int64_t left = rows.visible[i] - start;
      seen[i] = left < 0 ? 0 : left < here ? left : here;
      if (seen[i] == 0) continue;
      const float factor = tile_softmax(score + i * kTile, seen[i], start == 0, max_of[i], sum_of[i]);
      if (start > 0)
        for (int64_t h = 0; h < H; h += kLanes) store(out + i * H + h, load(out + i * H + h) * splat(factor));
    }
    // Keys that every row of a block sees go together; the few on the diagonal row by row.
    for (int64_t i = 0; i < rows.count; i += kBlockRows) {
      const int64_t n = rows.count - i < kBlockRows ? rows.count - i : kBlockRows;
      const int64_t shared = seen[i];
      if (shared > 0) add_values(n, score + i * kTile, 0, shared, v, H, out + i * H);
      for (int64_t r = i; r < i + n; ++r)
        if (seen[r] > shared) add_values(1, score + r * kTile, shared, seen[r], v, H, out + r * H);
    }
  }
  for (int64_t i = 0; i < rows.count; ++i) {
    const float total = sum(sum_of[i]);
    const float inverse = 1.f / total;
    for (int64_t h = 0; h < H; h += kLanes) store(rows.o[i] + h, load(out + i * H + h) * splat(inverse));
    if (rows.lse[i]) *rows.lse[i] = max_of[i] + std::log(total);
  }
}

// All query rows of the heads that share one KV head: `positions` tokens, the first one seeing `first` keys.
template <typename T>
void attend_head(const float* q, float* o, float* lse, int64_t N, int64_t heads, int64_t positions, int64_t first,
                 const Pages<T>& pages, float scale) {
  Rows rows;
  rows.count = 0;
  const int64_t ahead = (kGroup + heads - 1) / heads;  // positions until the next group, whose rows are fetched early
  for (int64_t t = 0; t < positions; ++t)
    for (int64_t head = 0; head < heads; ++head) {
      const int64_t at = t * N + head;
      if (t + ahead < positions)
        for (int64_t h = 0; h < pages.H; h += kLanes) {
          __builtin_prefetch(q + (at + ahead * N) * pages.H + h, 0);
          __builtin_prefetch(o + (at + ahead * N) * pages.H + h, 1);
        }
      rows.q[rows.count] = q + at * pages.H;
      rows.o[rows.count] = o + at * pages.H;
      rows.lse[rows.count] = lse ? lse + at : nullptr;
      rows.visible[rows.count] = first + t;
      if (++rows.count == kGroup) {
        attend_rows(rows, pages, scale);
        rows.count = 0;
      }
    }
  if (rows.count) attend_rows(rows, pages, scale);
}

template <typename T>
void paged(const View& q_TNH, const View& k_pages, const View& v_pages, const View& page_table_BM, const int32_t* cu_q,
           const int32_t* lengths, float scale, const View& o_TNH) {
  const int64_t N = q_TNH.size[1], H = q_TNH.size[2], n = k_pages.size[1], B = page_table_BM.size[0];
  const int64_t M = page_table_BM.size[1], heads = N / n;
  const Launch launch = tuned(Op::attend_paged, 1);
  parallel(launch, B * n, launch.grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / n, head = task % n;
      const Pages<T> pages{k_pages.as<T>() + head * H * kPage, v_pages.as<T>() + head * H * kPage, n * H * kPage,
                           page_table_BM.as<int32_t>() + b * M, H};
      const int64_t rows = cu_q[b + 1] - cu_q[b], at = (cu_q[b] * N + head * heads) * H;
      attend_head(q_TNH.as<float>() + at, o_TNH.as<float>() + at, static_cast<float*>(nullptr), N, heads, rows,
                  lengths[b] - rows + 1, pages, scale);
    }
  });
}

template <typename T>
void put(T& out, float x) {
  if constexpr (std::is_same_v<T, float>)
    out = x;
  else
    out.bits = round_bf16(x);
}

template <typename T>
void write(const View& k_TnH, const View& v_TnH, const int32_t* slots, const View& k_pages, const View& v_pages) {
  const int64_t T_ = k_TnH.size[0], n = k_TnH.size[1], H = k_TnH.size[2];
  const Launch launch = tuned(Op::pages, 8192);
  parallel(launch, T_, launch.rows(n * H), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      for (int64_t head = 0; head < n; ++head) {
        const int64_t page = ((slots[t] / kPage) * n + head) * H * kPage, offset = slots[t] % kPage;
        const float* k = k_TnH.as<float>() + (t * n + head) * H;
        const float* v = v_TnH.as<float>() + (t * n + head) * H;
        T* k_out = k_pages.as<T>() + page + offset;
        T* v_out = v_pages.as<T>() + page + offset * H;
        for (int64_t h = 0; h < H; ++h) put(k_out[h * kPage], k[h]);
        for (int64_t h = 0; h < H; ++h) put(v_out[h], v[h]);
      }
  });
}

}  // namespace

void attend_packed_forward(const View& q_TNH, const View& k_TnH, const View& v_TnH, const View& cu_seqlens_B1,
                           const View& prefix_B, double scale, bool round_to_bf16, const View& o_TNH,
                           const View& lse_TN) {
  check_packed(q_TNH, k_TnH, v_TnH, cu_seqlens_B1, prefix_B);
  const int64_t T = q_TNH.size[0], N = q_TNH.size[1], H = q_TNH.size[2], n = k_TnH.size[1], heads = N / n;
  o_TNH.check("o", Dtype::f32, {T, N, H});
  lse_TN.check("lse", Dtype::f32, {T, N});
  const Launch launch = tuned(Op::attend, 1, kRange);
  const std::vector<Span> spans = cut(cu_seqlens_B1, prefix_B, launch.block);
  parallel(launch, static_cast<int64_t>(spans.size()) * n, launch.grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const Span& span = spans[task / n];
      const int64_t head = task % n, keys = span.end, count = (keys + kPage - 1) / kPage;
      float* k = scratch(2 * count * kPage * H);
      float* v = k + count * kPage * H;
      const auto rows = [&](const View& x_TnH) {
        return [&span, n, head, H, x = x_TnH.as<float>()](int64_t t) { return x + (span.of.row(t) * n + head) * H; };
      };
      key_panels(rows(k_TnH), keys, H, round_to_bf16, k);
      dense_rows(rows(v_TnH), keys, H, round_to_bf16, v);
      const Pages<float> pages{k, v, kPage * H, nullptr, H};
      const int64_t at = span.of.row(span.begin) * N + head * heads;
      attend_head(q_TNH.as<float>() + at * H, o_TNH.as<float>() + at * H, lse_TN.as<float>() + at, N, heads,
                  span.end - span.begin, span.begin + 1, pages, static_cast<float>(scale));
    }
  });
}

void write_pages(const View& k_TnH, const View& v_TnH, const View& slots_T, const View& k_pages, const View& v_pages) {
  const int64_t T = k_TnH.size[0], n = k_TnH.size[1], H = k_TnH.size[2];
  k_TnH.check("k", Dtype::f32, {-1, -1, -1});
  v_TnH.check("v", Dtype::f32, {T, n, H});
  slots_T.check("slots", Dtype::i32, {T});
  check_pages(k_pages, v_pages, n, H);
  const int32_t* slots = slots_T.as<int32_t>();
  const int64_t limit = k_pages.size[0] * kPage;
  for (int64_t t = 0; t < T; ++t)
    ST_CHECK(slots[t] >= 0 && slots[t] < limit, "slots: entry ", t, " is ", slots[t], ", outside the ", limit, " positions");
  if (k_pages.dtype == Dtype::bf16)
    write<bf16>(k_TnH, v_TnH, slots, k_pages, v_pages);
  else
    write<float>(k_TnH, v_TnH, slots, k_pages, v_pages);
}

void attend_paged(const View& q_TNH, const View& k_pages, const View& v_pages, const View& page_table_BM, const View& cu_q_B1,
                  const View& lengths_B, double scale, const View& o_TNH) {
  q_TNH.check("q", Dtype::f32, {-1, -1, -1});
  const int64_t T = q_TNH.size[0], N = q_TNH.size[1], H = q_TNH.size[2];
  check_heads(N, k_pages.dims == 4 ? k_pages.size[1] : 0, H);
  check_pages(k_pages, v_pages, k_pages.size[1], H);
  page_table_BM.check("page_table", Dtype::i32, {-1, -1});
  const int64_t B = page_table_BM.size[0], M = page_table_BM.size[1];
  lengths_B.check("lengths", Dtype::i32, {B});
  o_TNH.check("o", Dtype::f32, {T, N, H});
  check_bounds("cu_q", cu_q_B1, B, T);
  const int32_t *cu_q = cu_q_B1.as<int32_t>(), *lengths = lengths_B.as<int32_t>();
  for (int64_t b = 0; b < B; ++b) {
    const int64_t rows = cu_q[b + 1] - cu_q[b], pages = (lengths[b] + kPage - 1) / kPage;
    ST_CHECK(lengths[b] >= rows, "lengths: sequence ", b, " has ", lengths[b], " positions but ", rows, " query rows");
    ST_CHECK(pages <= M, "page_table: sequence ", b, " needs ", pages, " pages, the table has ", M, " columns");
    const int32_t* table = page_table_BM.as<int32_t>() + b * M;
    for (int64_t p = 0; p < pages; ++p)
      ST_CHECK(table[p] >= 0 && table[p] < k_pages.size[0], "page_table: entry [", b, ", ", p, "] is ", table[p],
               ", expected 0 to ", k_pages.size[0] - 1);
  }
  if (k_pages.dtype == Dtype::bf16)
    paged<bf16>(q_TNH, k_pages, v_pages, page_table_BM, cu_q, lengths, static_cast<float>(scale), o_TNH);
  else
    paged<float>(q_TNH, k_pages, v_pages, page_table_BM, cu_q, lengths, static_cast<float>(scale), o_TNH);
}

}  // namespace seedthink::ST_ISA

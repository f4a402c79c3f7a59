// What static plans and compiled pieces call besides Inductor's kernels. Nothing of torch is in it.
#include <cstdint>
#include <cstring>
#include <exception>
#include <omp.h>

// A row of the weight is read once, from its beginning to its end, as a layer keeps it, so nothing
// is packed and no copy can be out of date. What a register holds is rows x columns sums of W parts.
#if defined(__AVX512F__)
constexpr int W = 16, ROWS = 6;
#elif defined(__AVX__)
constexpr int W = 8, ROWS = 3;
#else
constexpr int W = 4, ROWS = 3;
#endif
constexpr int COLUMNS = 4;

typedef float Vector __attribute__((vector_size(W * 4)));
typedef float Quad __attribute__((vector_size(16)));
typedef Vector Unaligned __attribute__((aligned(4), may_alias));

static inline Vector load(const float *from) { return *(const Unaligned *)from; }

static inline Vector rest(const float *from, int64_t count) {
  float part[W] = {};
  for (int64_t i = 0; i < count; i++) part[i] = from[i];
  return load(part);
}

static inline Quad folded(Vector of) {
#if defined(__AVX512F__)
  auto half = __builtin_shufflevector(of, of, 0, 1, 2, 3, 4, 5, 6, 7) +
              __builtin_shufflevector(of, of, 8, 9, 10, 11, 12, 13, 14, 15);
#else
  auto half = of;
#endif
#if defined(__AVX__)
  return __builtin_shufflevector(half, half, 0, 1, 2, 3) +
         __builtin_shufflevector(half, half, 4, 5, 6, 7);
#else
  return half;
#endif
}

// Rounded once wherever it can be. GCC 12 does so in some tiles of AVX2 and not in others, and a row
// would have other bits beside other rows.
static inline Vector plus_product(Vector sum, Vector a, Vector b) {
#if defined(__FMA__) && !defined(__AVX512F__)
  return (Vector)__builtin_ia32_vfmaddps256(a, b, sum);
#else
  return sum + a * b;
#endif
}

// The sums of four vectors.
static inline Quad sums_of(Vector a, Vector b, Vector c, Vector d) {
  Quad p = folded(a), q = folded(b), r = folded(c), s = folded(d);
  Quad pq = __builtin_shufflevector(p, q, 0, 4, 1, 5) + __builtin_shufflevector(p, q, 2, 6, 3, 7);
  Quad rs = __builtin_shufflevector(r, s, 0, 4, 1, 5) + __builtin_shufflevector(r, s, 2, 6, 3, 7);
  return __builtin_shufflevector(pq, rs, 0, 1, 4, 5) + __builtin_shufflevector(pq, rs, 2, 3, 6, 7);
}

// y[M, N] of x[M, k] and w[N, k]; N is 1 or 4.
template <int M, int N>
static inline void tile(const float *x, const float *w, const float *bias, float *y, int64_t n,
                        int64_t k) {
  Vector sums[M][N] = {};
  int64_t p = 0;
  for (; p + W <= k; p += W) {
    Vector part[N];
    for (int j = 0; j < N; j++) {
      part[j] = load(w + j * k + p);
      // Of the next rows, in the order in which they lie: memory is not idle while this computes.
      __builtin_prefetch(w + N * k + N * p + W * j);
    }
    for (int i = 0; i < M; i++) {
      Vector row = load(x + i * k + p);
      for (int j = 0; j < N; j++) sums[i][j] = plus_product(sums[i][j], row, part[j]);
    }
  }
  if (p < k) {
    Vector part[N];
    for (int j = 0; j < N; j++) part[j] = rest(w + j * k + p, k - p);
    for (int i = 0; i < M; i++) {
      Vector row = rest(x + i * k + p, k - p);
      for (int j = 0; j < N; j++) sums[i][j] = plus_product(sums[i][j], row, part[j]);
    }
  }
  for (int i = 0; i < M; i++) {
    const Vector *s = sums[i];
    Quad sum = N == 4 ? sums_of(s[0], s[1 % N], s[2 % N], s[3 % N]) : sums_of(s[0], s[0], s[0], s[0]);
    for (int j = 0; j < N; j++) y[i * n + j] = sum[j] + (bias ? bias[j] : 0.f);
  }
}

template <int M, int N>
static inline void columns(int64_t m, const float *x, const float *w, const float *bias, float *y,
                           int64_t n, int64_t k) {
  for (; m >= M; m -= M, x += M * k, y += M * n) tile<M, N>(x, w, bias, y, n, k);
  if constexpr (M > 1) columns<M - 1, N>(m, x, w, bias, y, n, k);
}

// y[m, n] = x[m, k] times w[n, k] transposed, and bias[n] unless it is null; all without gaps.
extern "C" void piecewise_rows(const float *x, const float *w, const float *bias, float *y,
                               int64_t m, int64_t n, int64_t k, int64_t threads) {
#pragma omp parallel num_threads(threads)
  {
    int64_t all = omp_get_num_threads(), own = omp_get_thread_num();
    int64_t blocks = n / COLUMNS, to = blocks * (own + 1) / all;
    for (int64_t b = blocks * own / all; b < to; b++) {
      int64_t j = b * COLUMNS;
      columns<ROWS, COLUMNS>(m, x, w + j * k, bias ? bias + j : bias, y + j, n, k);
    }
    if (own == all - 1)
      for (int64_t j = blocks * COLUMNS; j < n; j++)
        columns<ROWS, 1>(m, x, w + j * k, bias ? bias + j : bias, y + j, n, k);
  }
}

// Calls functions one after the other: each an address, how many places for arguments follow (8, 16
// or 32), and the arguments. A function takes pointers and 64-bit numbers only, and no more of them
// than there are places: who calls a C function clears its arguments away, so more do no harm.
// Returns null, or what a function threw: Inductor's throw where an index is out of bounds.
#define A8(i) a[i], a[i + 1], a[i + 2], a[i + 3], a[i + 4], a[i + 5], a[i + 6], a[i + 7]
#define T8 int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t

extern "C" const char *piecewise_steps(const int64_t *at, int64_t count) {
  static thread_local char thrown[512];
  try {
    for (; count > 0; count--) {
      const int64_t function = at[0], places = at[1], *a = at + 2;
      if (places == 8)
        ((void (*)(T8))function)(A8(0));
      else if (places == 16)
        ((void (*)(T8, T8))function)(A8(0), A8(8));
      else
        ((void (*)(T8, T8, T8, T8))function)(A8(0), A8(8), A8(16), A8(24));
      at = a + places;
    }
    return nullptr;
  } catch (const std::exception &error) {
    std::strncpy(thrown, error.what(), sizeof(thrown) - 1);
  } catch (...) {
    std::strncpy(thrown, "a compiled kernel failed", sizeof(thrown) - 1);
  }
  return thrown;
}

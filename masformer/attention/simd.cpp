// Attention of queries to runs of keys on CPUs with AVX-512 or AVX2, for masformer/attention/simd.py, which compiles it.
//
// Many queries of a key head lie in lanes: a vector holds the scores of 16 of them (8 with AVX2) with one key, so that
// the maximum, the exponentials and their sum need nothing across lanes, and keys are read as they lie in memory, one
// number (of bfloat16 a pair) for all lanes at once. Up to eight queries lie as in memory, four together, and vectors
// hold the numbers of a head.
// Scores of a block of keys exist at a time; the rule of their sums is that of FlashAttention, arXiv 2205.14135,
// algorithm 1.
//
// Two ways to share the work among threads. Many queries: a thread takes a stretch of queries with all their runs. Few
// queries: a thread takes a piece of a run with all queries that read it, and what the pieces made is merged, as in
// Flash-Decoding and Hydragen (arXiv 2402.05099, section 3.1).

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>
#include <vector>

extern "C" {

// Keys and values of some positions, and the rows of the batch that read them. Strides are in numbers, those of a row
// 0 where all rows read the same; the numbers of a position stand side by side. Of `bounds`, query t of row b reads two
// numbers at b * bounds_row + 2 * t: the first key that it sees, and the one after the last. No bounds: all keys.
struct Run {
    const void *key, *value;
    int64_t key_row, key_head, key_token, value_row, value_head, value_token;
    int64_t num_keys, first_row, stop_row;
    const int32_t* bounds;
    int64_t bounds_row;
};

// Shapes: queries and outputs (rows, heads, length, size); lse (rows, heads, length), natural logarithms. A softcap of
// 0 is none.
struct Problem {
    const void* query;
    void* out;
    float* lse;
    int64_t query_row, query_head, query_token, out_row, out_head, out_token;
    int64_t rows, heads, key_heads, length, size, value_size;
    float scale, softcap;
    int32_t threads, num_runs;
    const Run* runs;
};
}

namespace {

#ifdef __AVX512F__

constexpr int LANES = 16;   // numbers of a vector
constexpr int STEP = 8;     // keys, or numbers of a value, whose sums are held in registers
constexpr int ACROSS = 4;   // vectors of a value whose sums are held in registers
constexpr int MANY = 2;     // vectors of queries in lanes
constexpr int SOME = 1;     // vectors where there are no more queries

using vec = __m512;
using ints = __m512i;

inline vec zeros() { return _mm512_setzero_ps(); }
inline vec splat(float x) { return _mm512_set1_ps(x); }
inline ints splat(int32_t x) { return _mm512_set1_epi32(x); }
inline ints count_up() { return _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0); }
inline vec load(const float* at) { return _mm512_loadu_ps(at); }
inline ints load(const int32_t* at) { return _mm512_loadu_si512(at); }
// The first `count` numbers, then zeros; fewer than there are lanes.
inline vec load_some(const float* at, int count) { return _mm512_maskz_loadu_ps(__mmask16((1u << count) - 1), at); }
inline void store(float* at, vec x) { _mm512_storeu_ps(at, x); }
inline vec add(vec a, vec b) { return _mm512_add_ps(a, b); }
inline vec sub(vec a, vec b) { return _mm512_sub_ps(a, b); }
inline vec mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
inline vec div(vec a, vec b) { return _mm512_div_ps(a, b); }
inline vec fma(vec a, vec b, vec sum) { return _mm512_fmadd_ps(a, b, sum); }
inline vec least(vec a, vec b) { return _mm512_min_ps(a, b); }     // b where one is NaN
inline vec greatest(vec a, vec b) { return _mm512_max_ps(a, b); }  // likewise
inline bool any_greater(vec a, vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
inline float greatest_of(vec x) { return _mm512_reduce_max_ps(x); }
inline float sum_of(vec x) { return _mm512_reduce_add_ps(x); }
inline vec whole_of(vec x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// x times 2 to the power of a whole number; 0 where that is far below -126.
inline vec times_power(vec x, vec whole) { return _mm512_scalef_ps(x, whole); }
inline ints add(ints a, ints b) { return _mm512_add_epi32(a, b); }
// x where low <= place < high, else minus infinity.
inline vec where_between(vec x, ints low, ints place, ints high) {
    __mmask16 seen = _mm512_cmple_epi32_mask(low, place) & _mm512_cmplt_epi32_mask(place, high);
    return _mm512_mask_blend_ps(seen, splat(-INFINITY), x);
}

// The sums of as many vectors as there are lanes.
inline vec sums_of(const vec* from) {
    vec fours[8], pairs[4], halves[2];
    for (int i = 0; i < 8; i++) {
        vec a = from[2 * i], b = from[2 * i + 1];
        fours[i] = add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    }
    for (int i = 0; i < 4; i++) {
        __m512d a = _mm512_castps_pd(fours[2 * i]), b = _mm512_castps_pd(fours[2 * i + 1]);
        pairs[i] = add(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    auto folded = [](vec a, vec b) {
        return add(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    };
    for (int i = 0; i < 2; i++) halves[i] = folded(pairs[2 * i], pairs[2 * i + 1]);
    return folded(halves[0], halves[1]);
}

#elif defined(__AVX2__) && defined(__FMA__)

// The same with half as many lanes, and half as many registers.
constexpr int LANES = 8, STEP = 4, ACROSS = 2, MANY = 3, SOME = 2;

using vec = __m256;
using ints = __m256i;

inline vec zeros() { return _mm256_setzero_ps(); }
inline vec splat(float x) { return _mm256_set1_ps(x); }
inline ints splat(int32_t x) { return _mm256_set1_epi32(x); }
inline ints count_up() { return _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0); }
inline vec load(const float* at) { return _mm256_loadu_ps(at); }
inline ints load(const int32_t* at) { return _mm256_loadu_si256((const __m256i*)at); }
inline vec load_some(const float* at, int count) { return _mm256_maskload_ps(at, _mm256_cmpgt_epi32(splat(count), count_up())); }
inline void store(float* at, vec x) { _mm256_storeu_ps(at, x); }
inline vec add(vec a, vec b) { return _mm256_add_ps(a, b); }
inline vec sub(vec a, vec b) { return _mm256_sub_ps(a, b); }
inline vec mul(vec a, vec b) { return _mm256_mul_ps(a, b); }
inline vec div(vec a, vec b) { return _mm256_div_ps(a, b); }
inline vec fma(vec a, vec b, vec sum) { return _mm256_fmadd_ps(a, b, sum); }
inline vec least(vec a, vec b) { return _mm256_min_ps(a, b); }
inline vec greatest(vec a, vec b) { return _mm256_max_ps(a, b); }
inline bool any_greater(vec a, vec b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)); }
inline float greatest_of(vec x) {
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}
inline float sum_of(vec x) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}
inline vec whole_of(vec x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline ints add(ints a, ints b) { return _mm256_add_epi32(a, b); }
inline vec times_power(vec x, vec whole) {
    ints exponent = _mm256_max_epi32(_mm256_cvtps_epi32(whole), splat(-127));
    return mul(x, _mm256_castsi256_ps(_mm256_slli_epi32(add(exponent, splat(127)), 23)));
}
inline vec where_between(vec x, ints low, ints place, ints high) {
    ints unseen = _mm256_or_si256(_mm256_cmpgt_epi32(low, place), _mm256_cmpgt_epi32(add(place, splat(1)), high));
    return _mm256_blendv_ps(x, splat(-INFINITY), _mm256_castsi256_ps(unseen));
}
inline vec sums_of(const vec* from) {
    vec pairs[4], fours[2];
    for (int i = 0; i < 4; i++) pairs[i] = _mm256_hadd_ps(from[2 * i], from[2 * i + 1]);
    for (int i = 0; i < 2; i++) fours[i] = _mm256_hadd_ps(pairs[2 * i], pairs[2 * i + 1]);
    return add(_mm256_permute2f128_ps(fours[0], fours[1], 0x20), _mm256_permute2f128_ps(fours[0], fours[1], 0x31));
}

#else
#error "neither AVX-512 nor AVX2"
#endif

constexpr int BLOCK = 64, FEW_KEYS = 32;       // keys whose scores exist at a time; those where queries are few
constexpr int MOST = MANY * LANES, SETS = 8;   // queries of a set, and sets that a thread takes together
constexpr int STRETCH = SETS * MOST;
constexpr int FEW = 4;                         // queries of a set that do not lie in lanes
constexpr int PIECE = 512;                     // keys that a thread takes at least where queries are few
constexpr float LOWEST = -1e30f;               // the maximum before any score, which is to be greater
constexpr float SLACK = 8.0f;                  // powers of two that it may grow by before sums are scaled again
constexpr float LOG2_E = 1.44269504f, LN_2 = 0.69314718f;

using bf16 = uint16_t;

inline void to_dtype(float x, float* to) { *to = x; }
inline void to_dtype(float x, bf16* to) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    *to = std::isnan(x) ? 0x7fc0 : bf16((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// 2 to the power of x, less 1, for x from -0.5 to 0.5, within 2e-7 of it.
inline vec little_power(vec x) {
    vec sum = splat(1.5403530e-4f);  // ln(2)^n / n!
    for (float factor : {1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f})
        sum = fma(sum, x, splat(factor));
    return mul(sum, x);
}

// 2 to the power of x; 0 where x is far below -126.
inline vec exp2_of(vec x) {
    x = greatest(splat(-200.0f), x);  // in this order NaN stays
    vec whole = whole_of(x);
    return times_power(add(little_power(sub(x, whole)), splat(1.0f)), whole);
}

// softcap * tanh(x / softcap) of scores x, both in powers of two. With m = exp(2 y) - 1, tanh(y) is m / (m + 2); what is
// far from 0 is 1 or -1 anyway.
inline vec capped(vec x, float softcap) {
    x = least(splat(120.0f), greatest(splat(-120.0f), mul(x, splat(2 / softcap))));
    vec whole = whole_of(x), scale = times_power(splat(1.0f), whole);
    vec less = fma(little_power(sub(x, whole)), scale, sub(scale, splat(1.0f)));
    return mul(splat(softcap * LOG2_E), div(less, add(less, splat(2.0f))));
}

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) {
    uint32_t bits = uint32_t(x) << 16;
    float found;
    std::memcpy(&found, &bits, 4);
    return found;
}

// What is multiplied in place of stored numbers: bfloat16 itself only where there are instructions for it.
template <typename S>
struct Multiplied {
    using type = float;
};
#ifdef __AVX512BF16__
template <>
struct Multiplied<bf16> {
    using type = bf16;
};
#endif

// What the dtypes differ in. A group is what one lane multiplies at once: a number, or a pair of bfloat16.
template <typename T>
struct Numbers;

template <>
struct Numbers<float> {
    static constexpr int GROUP = 1, EACH = LANES;
    using group = float;
    static vec broadcast(const float* at) { return splat(*at); }
    static vec multiply(vec sum, vec a, vec b) { return fma(a, b, sum); }
    // The first `count` numbers of a vector, then zeros.
    static vec load_partial(const float* at, int count) {
        return count >= EACH ? load(at) : load_some(at, std::max(count, 0));
    }
    // Vectors of the numbers of a value: those of keys k and k + 1 side by side for bfloat16.
    static void values(const float* at, const float*, int count, vec* to) {
        for (int i = 0; i < ACROSS; i++) to[i] = load_partial(at + i * LANES, count - i * LANES);
    }
    // Weights as `multiply` takes them.
    static const float* weights(const float* from, int, float*) { return from; }
};

#ifdef __AVX512BF16__
// Where the first halves of two vectors' numbers are, side by side.
alignas(64) const uint16_t LOW_PAIRS[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                            8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};

template <>
struct Numbers<bf16> {
    static constexpr int GROUP = 2, EACH = 32;
    using group = uint32_t;
    static vec broadcast(const bf16* at) {
        int32_t pair;
        std::memcpy(&pair, at, 4);
        return _mm512_castsi512_ps(_mm512_set1_epi32(pair));
    }
    static vec multiply(vec sum, vec a, vec b) {
        return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_castps_si512(a), (__m512bh)_mm512_castps_si512(b));
    }
    static vec load_partial(const bf16* at, int count) {
        __m512i found = count >= EACH ? _mm512_loadu_si512(at)
                                      : _mm512_maskz_loadu_epi16(__mmask32((1ull << std::max(count, 0)) - 1), at);
        return _mm512_castsi512_ps(found);
    }
    static void pairs(vec one, vec other, vec* to) {
        __m512i low = _mm512_load_si512(LOW_PAIRS), high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
        __m512i a = _mm512_castps_si512(one), b = _mm512_castps_si512(other);
        to[0] = _mm512_castsi512_ps(_mm512_permutex2var_epi16(a, low, b));
        to[1] = _mm512_castsi512_ps(_mm512_permutex2var_epi16(a, high, b));
    }
    static void values(const bf16* at, const bf16* next, int count, vec* to) {
        for (int i = 0; i < 2; i++) {
            int left = count - i * EACH;
            pairs(load_partial(at + i * EACH, left), next ? load_partial(next + i * EACH, left) : zeros(), to + 2 * i);
        }
    }
    // Store the numbers of two vectors, each beside that of the other.
    static void store_pairs(vec one, vec other, uint32_t* to) {
        __m512i a = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(one));
        __m512i b = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(other));
        _mm512_store_si512(to, _mm512_or_si512(a, _mm512_slli_epi32(b, 16)));
    }
    static const bf16* weights(const float* from, int count, bf16* to) {
        for (int i = 0; i < count; i += LANES)
            _mm256_storeu_si256((__m256i*)(to + i), (__m256i)_mm512_cvtneps_pbh(load(from + i)));
        return to;
    }
};
#endif

// Have the numbers of some positions come from memory while others are worked on.
template <typename T>
void fetch(const T* states, int64_t token, int count, int size) {
    for (int i = 0; i < count; i++)
        for (int d = 0; d < size; d += 64 / int(sizeof(T))) _mm_prefetch((const char*)(states + i * token + d), _MM_HINT_T0);
}

// Copy numbers as they are multiplied.
template <typename S, typename T>
void copy_numbers(const S* from, int count, T* to) {
    for (int i = 0; i < count; i++) {
        if constexpr (std::is_same_v<S, T>)
            to[i] = from[i];
        else
            to[i] = to_float(from[i]);
    }
}

// A block of keys, and their values as they lie; `next` keys follow them that are worked on next.
template <typename T>
struct Block {
    const T *key, *value;
    int64_t key_token, value_token, first;
    int num_keys, next;
    bool is_cold;  // no set has read it
    // Fetch what follows the keys from `at` on in the next block.
    void fetch_next(int at, int count, int size, int value_size) const {
        count = std::min(count, next - at);
        fetch(key + (num_keys + at) * key_token, key_token, count, size);
        fetch(value + (num_keys + at) * value_token, value_token, count, value_size);
    }
};

// Which keys each query of a set sees in a run, and all of them: from `least` to before `most` some query sees some, and
// from `all_low` to before `all_high` all queries see all.
struct Bounds {
    int32_t low[MOST], high[MOST], least, most, all_low, all_high;
};

// Queries of a key head that are worked on together: where each is found, and how many of them are real.
struct Queries {
    int count;
    int64_t row[MOST], head[MOST], token[MOST];

    // Take those from `first` on, of (rows, length, heads of the key head); what is not real repeats the last.
    void take(const Problem& p, int64_t from_row, int64_t rows, int64_t key_head, int64_t first, int width) {
        int64_t group = p.heads / p.key_heads, total = rows * p.length * group;
        count = int(std::min<int64_t>(width, total - first));
        for (int i = 0; i < width; i++) {
            int64_t index = std::min(first + i, total - 1);
            head[i] = key_head * group + index % group;
            token[i] = index / group % p.length;
            row[i] = from_row + index / group / p.length;
        }
    }

    void bounds_in(const Run& run, int width, Bounds& found) const {
        int32_t num_keys = int32_t(run.num_keys);
        if (!run.bounds) {
            found.least = found.all_low = 0;
            found.most = found.all_high = num_keys;
            return;
        }
        found.least = found.all_high = num_keys;
        found.most = found.all_low = 0;
        for (int i = 0; i < width; i++) {
            const int32_t* at = run.bounds + row[i] * run.bounds_row + 2 * token[i];
            int32_t low = found.low[i] = at[0], high = found.high[i] = std::min(at[1], num_keys);
            found.all_low = std::max(found.all_low, low);
            found.all_high = std::min(found.all_high, high);
            if (low < high) {
                found.least = std::min(found.least, low);
                found.most = std::max(found.most, high);
            }
        }
    }

    template <typename T>
    const T* query(const Problem& p, int i) const {
        return (const T*)p.query + row[i] * p.query_row + head[i] * p.query_head + token[i] * p.query_token;
    }
};

// Queries in the lanes of VECTORS vectors, whose numbers are stored as S.
template <typename S, int VECTORS>
struct InLanes : Queries {
    using stored = S;
    using T = typename Multiplied<S>::type;
    using N = Numbers<T>;
    static constexpr int WIDTH = VECTORS * LANES, KEYS = BLOCK;
    std::vector<float> queries, outs;  // (size / GROUP, WIDTH) of groups, (value_size, WIDTH)
    alignas(64) float mosts[WIDTH], sums[WIDTH];

    void begin(const Problem& p, int64_t from_row, int64_t rows, int64_t key_head, int64_t first) {
        take(p, from_row, rows, key_head, first, WIDTH);
        queries.resize(p.size / N::GROUP * WIDTH);
        outs.assign(p.value_size * WIDTH, 0.0f);
        std::fill_n(mosts, WIDTH, LOWEST);
        std::fill_n(sums, WIDTH, 0.0f);
        for (int i = 0; i < WIDTH; i++) {
            const S* from = query<S>(p, i);
            for (int d = 0; d < p.size / N::GROUP; d++) {
                if constexpr (N::GROUP == 1)
                    queries[d * WIDTH + i] = to_float(from[d]);
                else
                    std::memcpy(&queries[d * WIDTH + i], from + d * N::GROUP, sizeof(typename N::group));
            }
        }
    }

    float most(int i) const { return mosts[i]; }
    float sum(int i) const { return sums[i]; }
    float out(int i, int d) const { return outs[d * WIDTH + i]; }

    // Lay the values of a block out in groups (groups, value_size, GROUP), zeros where the last is not full.
    static const T* arrange(const Block<T>& block, int size, std::vector<T>& room) {
        if constexpr (N::GROUP == 1) {
            return block.value;
        } else {
            room.resize((KEYS + 2) * size + MOST);
            for (int k = 0; k < block.num_keys; k += 2) {
                const T *one = block.value + k * block.value_token, *other = one + block.value_token;
                for (int d = 0; d < size; d += N::EACH) {
                    vec both[2];
                    vec next = k + 1 < block.num_keys ? N::load_partial(other + d, size - d) : zeros();
                    N::pairs(N::load_partial(one + d, size - d), next, both);
                    // What is beyond the last number is overwritten by the next group.
                    std::memcpy(&room[k * size + 2 * d], both, sizeof(vec) * (size - d > LANES ? 2 : 1));
                }
            }
            return room.data();
        }
    }

    void attend(const Problem& p, const Block<T>& block, const T* values, const Bounds* bounds) {
        alignas(64) float scores[(KEYS + STEP) * WIDTH];
        int num_keys = block.num_keys;
        for (int first = 0; first < num_keys; first += STEP) score(p, block, first, scores + first * WIDTH);
        if (p.softcap != 0)
            for (int i = 0; i < num_keys * WIDTH; i += LANES) store(scores + i, capped(load(scores + i), p.softcap));
        for (int v = 0; v < VECTORS; v++) {
            float* of_vector = scores + v * LANES;
            if (bounds) {
                ints low = load(bounds->low + v * LANES), high = load(bounds->high + v * LANES);
                for (int k = 0; k < num_keys; k++) {
                    float* at = of_vector + k * WIDTH;
                    store(at, where_between(load(at), low, splat(int32_t(block.first + k)), high));
                }
            }
            weigh(p, num_keys, of_vector, v);
        }
        if constexpr (N::GROUP == 1) {
            gather(values, block.value_token, num_keys, p.value_size, scores);
        } else {
            alignas(64) uint32_t pairs[KEYS / 2 * WIDTH];
            for (int i = 0; i < VECTORS; i++) std::memset(scores + num_keys * WIDTH + i * LANES, 0, sizeof(vec));
            for (int k = 0; k < num_keys; k += 2)
                for (int i = 0; i < WIDTH; i += LANES) {
                    const float* at = scores + k * WIDTH + i;
                    N::store_pairs(load(at), load(at + WIDTH), pairs + k / 2 * WIDTH + i);
                }
            gather(values, p.value_size * 2, (num_keys + 1) / 2, p.value_size, (const float*)pairs);
        }
    }

  private:
    // Scores of STEP keys in powers of two.
    void score(const Problem& p, const Block<T>& block, int first, float* scores) {
        vec found[STEP][VECTORS];
        const T* at[STEP];
        block.fetch_next(first, STEP, p.size, p.value_size);
        for (int k = 0; k < STEP; k++) {
            at[k] = block.key + std::min(first + k, block.num_keys - 1) * block.key_token;
            for (int v = 0; v < VECTORS; v++) found[k][v] = zeros();
        }
        for (int d = 0; d < p.size / N::GROUP; d++) {
            vec many[VECTORS];
            for (int v = 0; v < VECTORS; v++) many[v] = load(&queries[d * WIDTH + v * LANES]);
#pragma GCC unroll 8
            for (int k = 0; k < STEP; k++) {
                vec one = N::broadcast(at[k] + d * N::GROUP);
                for (int v = 0; v < VECTORS; v++) found[k][v] = N::multiply(found[k][v], many[v], one);
            }
        }
        for (int k = 0; k < STEP; k++)
            for (int v = 0; v < VECTORS; v++)
                store(scores + k * WIDTH + v * LANES, mul(found[k][v], splat(p.scale * LOG2_E)));
    }

    // Turn the scores of a vector's lanes into weights, against the maximum so far.
    void weigh(const Problem& p, int num_keys, float* scores, int v) {
        vec before = load(mosts + v * LANES), most = before, total = load(sums + v * LANES);
        for (int k = 0; k < num_keys; k++) most = greatest(most, load(scores + k * WIDTH));
        if (any_greater(most, add(before, splat(SLACK)))) {
            vec share = exp2_of(sub(before, most));
            total = mul(total, share);
            for (int d = 0; d < p.value_size; d++) {
                float* at = &outs[d * WIDTH + v * LANES];
                store(at, mul(load(at), share));
            }
            store(mosts + v * LANES, before = most);
        }
        for (int k = 0; k < num_keys; k++) {
            vec weight = exp2_of(sub(load(scores + k * WIDTH), before));
            store(scores + k * WIDTH, weight);
            total = add(total, weight);
        }
        store(sums + v * LANES, total);
    }

    // Add the products of weights (groups, WIDTH) and values (groups, value_size), each of a group.
    void gather(const T* values, int64_t value_group, int groups, int size, const float* weights) {
        for (int first = 0; first < size; first += STEP) {
            vec found[STEP][VECTORS];
            for (int d = 0; d < STEP; d++)
                for (int v = 0; v < VECTORS; v++) found[d][v] = load(&outs[(first + d) * WIDTH + v * LANES]);
            for (int k = 0; k < groups; k++) {
                const T* at = values + k * value_group + first * N::GROUP;
                vec many[VECTORS];
                for (int v = 0; v < VECTORS; v++) many[v] = load(weights + k * WIDTH + v * LANES);
#pragma GCC unroll 8
                for (int d = 0; d < STEP; d++) {
                    vec one = N::broadcast(at + d * N::GROUP);
                    for (int v = 0; v < VECTORS; v++) found[d][v] = N::multiply(found[d][v], many[v], one);
                }
            }
            for (int d = 0; d < STEP; d++)
                for (int v = 0; v < VECTORS; v++) store(&outs[(first + d) * WIDTH + v * LANES], found[d][v]);
        }
    }
};

// Up to FEW queries, as they lie in memory.
template <typename S>
struct RowMajor : Queries {
    using stored = S;
    using T = typename Multiplied<S>::type;
    using N = Numbers<T>;
    static constexpr int WIDTH = FEW, KEYS = FEW_KEYS;
    static_assert(KEYS % LANES == 0);
    std::vector<T> queries;   // (FEW, size in whole vectors)
    std::vector<float> outs;  // (FEW, value_size in steps of ACROSS vectors)
    float mosts[FEW], sums[FEW];
    int query_step, out_step;

    void begin(const Problem& p, int64_t from_row, int64_t rows, int64_t key_head, int64_t first) {
        take(p, from_row, rows, key_head, first, FEW);
        query_step = (int(p.size) + N::EACH - 1) / N::EACH * N::EACH;
        out_step = (int(p.value_size) + ACROSS * LANES - 1) / (ACROSS * LANES) * ACROSS * LANES;
        queries.assign(FEW * query_step, T(0));
        outs.assign(FEW * out_step, 0.0f);
        std::fill_n(mosts, FEW, LOWEST);
        std::fill_n(sums, FEW, 0.0f);
        for (int i = 0; i < count; i++) copy_numbers(query<S>(p, i), int(p.size), queries.data() + i * query_step);
    }

    float most(int i) const { return mosts[i]; }
    float sum(int i) const { return sums[i]; }
    float out(int i, int d) const { return outs[i * out_step + d]; }

    static const T* arrange(const Block<T>& block, int, std::vector<T>&) { return block.value; }

    void attend(const Problem& p, const Block<T>& block, const T*, const Bounds* bounds) {
        alignas(64) float weights[FEW * KEYS];
        std::fill_n(weights, FEW * KEYS, 0.0f);
        for (int first = 0; first < block.num_keys; first += LANES) {
            int ready = std::min(LANES, block.num_keys - first);
            for (int i = 0; i < count; i++) {
                // Fetch the values of these keys while scores are computed; `gather` fetches the next keys.
                int from = ready * i / count, num_values = block.is_cold ? ready * (i + 1) / count - from : 0;
                fetch(block.value + (first + from) * block.value_token, block.value_token, num_values, int(p.value_size));
                vec found = score(p, block, first, queries.data() + i * query_step);
                if (p.softcap != 0) found = capped(found, p.softcap);
                int64_t low = bounds ? bounds->low[i] - block.first : 0;
                int64_t high = bounds ? std::min<int64_t>(bounds->high[i] - block.first, block.num_keys) : block.num_keys;
                ints place = add(splat(first), count_up());
                found = where_between(found, splat(int32_t(low)), place, splat(int32_t(high)));
                store(weights + i * KEYS + first, found);
            }
        }
        for (int i = 0; i < count; i++) weigh(weights + i * KEYS, (block.num_keys + LANES - 1) / LANES * LANES, i);
        alignas(64) T as_numbers[FEW * KEYS];
        gather(p, block, N::weights(weights, FEW * KEYS, as_numbers));
    }

  private:
    // Scores of as many keys as there are lanes, in powers of two; the last key is repeated.
    vec score(const Problem& p, const Block<T>& block, int first, const T* asking) {
        vec found[LANES];
        const T* at[LANES];
        for (int k = 0; k < LANES; k++) {
            at[k] = block.key + std::min(first + k, block.num_keys - 1) * block.key_token;
            found[k] = zeros();
        }
        int size = int(p.size), whole = size / N::EACH * N::EACH;
        // Apart from the last numbers, so that the sums stay in registers.
        auto multiply = [&](int d, int count) {
            vec many = N::load_partial(asking + d, N::EACH);
#pragma GCC unroll 16
            for (int k = 0; k < LANES; k++) found[k] = N::multiply(found[k], many, N::load_partial(at[k] + d, count));
        };
        for (int d = 0; d < whole; d += N::EACH) multiply(d, N::EACH);
        if (whole < size) multiply(whole, size - whole);
        return mul(sums_of(found), splat(p.scale * LOG2_E));
    }

    void weigh(float* scores, int num_keys, int i) {
        vec found = splat(mosts[i]);
        for (int k = 0; k < num_keys; k += LANES) found = greatest(found, load(scores + k));
        float most = greatest_of(found);
        if (!(most <= mosts[i] + SLACK)) {
            float share = std::exp2(mosts[i] - most);
            for (int d = 0; d < out_step; d++) outs[i * out_step + d] *= share;
            sums[i] *= share;
            mosts[i] = most;
        }
        vec total = zeros();
        for (int k = 0; k < num_keys; k += LANES) {
            vec weight = exp2_of(sub(load(scores + k), splat(mosts[i])));
            store(scores + k, weight);
            total = add(total, weight);
        }
        sums[i] += sum_of(total);
    }

    void gather(const Problem& p, const Block<T>& block, const T* weights) {
        for (int first = 0; first < p.value_size; first += ACROSS * LANES) {
            const T* key = block.key + block.num_keys * block.key_token + first;
            int num_numbers = first + ACROSS * LANES < p.value_size ? ACROSS * LANES : int(p.size) - first;
            vec found[FEW][ACROSS];
            for (int i = 0; i < FEW; i++)
                for (int v = 0; v < ACROSS; v++) found[i][v] = load(&outs[i * out_step + first + v * LANES]);
            for (int k = 0; k < block.num_keys; k += N::GROUP) {
                const T* at = block.value + k * block.value_token + first;
                if (k < block.next) fetch(key + k * block.key_token, block.key_token, N::GROUP, num_numbers);
                vec numbers[ACROSS];
                N::values(at, k + 1 < block.num_keys ? at + block.value_token : nullptr, int(p.value_size) - first, numbers);
#pragma GCC unroll 4
                for (int i = 0; i < FEW; i++) {
                    vec weight = N::broadcast(weights + i * KEYS + k);
                    for (int v = 0; v < ACROSS; v++) found[i][v] = N::multiply(found[i][v], weight, numbers[v]);
                }
            }
            for (int i = 0; i < FEW; i++)
                for (int v = 0; v < ACROSS; v++) store(&outs[i * out_step + first + v * LANES], found[i][v]);
        }
    }
};

// What a thread works with.
template <typename Set>
struct Work {
    std::vector<Set> sets;
    std::vector<Bounds> bounds;
    using S = typename Set::stored;
    using T = typename Set::T;
    std::vector<T> room, numbers;

    // Take the queries from `first` on, at most so many.
    void begin(const Problem& p, int64_t row, int64_t rows, int64_t key_head, int64_t first, int64_t most) {
        int64_t total = std::min(most, rows * p.length * (p.heads / p.key_heads) - first);
        sets.resize((total + Set::WIDTH - 1) / Set::WIDTH);
        bounds.resize(sets.size());
        for (size_t i = 0; i < sets.size(); i++) sets[i].begin(p, row, rows, key_head, first + i * Set::WIDTH);
    }

    // A block whose numbers are not multiplied as they are stored.
    Block<T> multiplied(const Problem& p, const S* key, int64_t key_token, const S* value, int64_t value_token, int64_t first, int num_keys) {
        numbers.resize(Set::KEYS * (p.size + p.value_size));
        T *keys = numbers.data(), *values = keys + Set::KEYS * p.size;
        for (int k = 0; k < num_keys; k++) {
            copy_numbers(key + k * key_token, int(p.size), keys + k * p.size);
            copy_numbers(value + k * value_token, int(p.value_size), values + k * p.value_size);
        }
        return {keys, values, p.size, p.value_size, first, num_keys, 0, false};
    }

    // Let them attend to the keys from `first` to before `stop` of a run.
    void attend(const Problem& p, const Run& run, int64_t row, int64_t key_head, int64_t first, int64_t stop) {
        int64_t least = stop, most = first;
        for (size_t i = 0; i < sets.size(); i++) {
            sets[i].bounds_in(run, Set::WIDTH, bounds[i]);
            least = std::min<int64_t>(least, bounds[i].least);
            most = std::max<int64_t>(most, bounds[i].most);
        }
        first = std::max(first, least);
        stop = std::min(stop, most);
        const S* key = (const S*)run.key + row * run.key_row + key_head * run.key_head;
        const S* value = (const S*)run.value + row * run.value_row + key_head * run.value_head;
        for (int64_t at = first; at < stop; at += Set::KEYS) {
            int num_keys = int(std::min<int64_t>(Set::KEYS, stop - at));
            int next = int(std::min<int64_t>(Set::KEYS, std::max<int64_t>(0, stop - at - Set::KEYS)));
            Block<T> block;
            if constexpr (std::is_same_v<S, T>)
                block = {key + at * run.key_token, value + at * run.value_token, run.key_token, run.value_token, at, num_keys, next, true};
            else
                block = multiplied(p, key + at * run.key_token, run.key_token, value + at * run.value_token, run.value_token, at, num_keys);
            const T* values = Set::arrange(block, int(p.value_size), room);
            for (size_t i = 0; i < sets.size(); i++) {
                if (bounds[i].least >= at + num_keys || bounds[i].most <= at) continue;
                bool is_whole = bounds[i].all_low <= at && at + num_keys <= bounds[i].all_high;
                sets[i].attend(p, block, values, is_whole ? nullptr : &bounds[i]);
                block.next = 0;
                block.is_cold = false;
            }
        }
    }
};

// Write what a query came to: the output, and the natural logarithm of the sum.
template <typename T, typename Out>
void finish(const Problem& p, int64_t row, int64_t head, int64_t token, float most, float sum, Out&& out) {
    T* to = (T*)p.out + row * p.out_row + head * p.out_head + token * p.out_token;
    float share = sum == 0 ? 0 : 1 / sum;
    for (int d = 0; d < p.value_size; d++) to_dtype(out(d) * share, to + d);
    p.lse[(row * p.heads + head) * p.length + token] = sum == 0 ? -INFINITY : most * LN_2 + std::log(sum);
}

// Do something in a thread, whose exceptions must not leave it; note that memory has run out.
template <typename Task>
void guarded(std::atomic<bool>& is_out_of_memory, Task&& task) {
    try {
        task();
    } catch (const std::bad_alloc&) {
        is_out_of_memory = true;
    }
}

template <typename T>
void attend_many(const Problem& p, std::atomic<bool>& is_out_of_memory) {
    // The longer a stretch, the fewer times keys are read; yet every thread is to have several.
    int64_t queries = p.heads / p.key_heads * p.length, pairs = p.rows * p.key_heads, each = STRETCH;
    while (each > MOST && pairs * ((queries + each - 1) / each) < 8 * p.threads) each /= 2;
    int64_t stretches = (queries + each - 1) / each;
#pragma omp parallel num_threads(p.threads)
    {
        Work<InLanes<T, MANY>> work;
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < pairs * stretches; task++) guarded(is_out_of_memory, [&] {
            // The last stretches first: they see the most keys.
            int64_t first = (stretches - 1 - task / pairs) * each;
            int64_t row = task % pairs / p.key_heads, key_head = task % p.key_heads;
            work.begin(p, row, 1, key_head, first, each);
            for (const Run* run = p.runs; run < p.runs + p.num_runs; run++)
                if (run->first_row <= row && row < run->stop_row) work.attend(p, *run, row, key_head, 0, run->num_keys);
            for (const auto& set : work.sets)
                for (int i = 0; i < set.count; i++)
                    finish<T>(p, set.row[i], set.head[i], set.token[i], set.most(i), set.sum(i), [&](int d) { return set.out(i, d); });
        });
    }
}

// Some keys of a run, and some of the queries that read them.
struct Piece {
    const Run* run;
    int64_t row, rows, key_head, first_query, first_key, stop_key, place;
};

// Outputs that are not yet divided, maxima and sums of all pieces.
struct Parts {
    std::unique_ptr<float[]> outs, mosts, sums;
};

template <typename Set>
void attend_piece(const Problem& p, const Piece& piece, Work<Set>& work, Parts& parts) {
    work.begin(p, piece.row, piece.rows, piece.key_head, piece.first_query, STRETCH);
    int64_t at = piece.place;
    work.attend(p, *piece.run, piece.row, piece.key_head, piece.first_key, piece.stop_key);
    for (const Set& set : work.sets)
        for (int i = 0; i < set.count; i++, at++) {
            for (int d = 0; d < p.value_size; d++) parts.outs[at * p.value_size + d] = set.out(i, d);
            parts.mosts[at] = set.most(i);
            parts.sums[at] = set.sum(i);
        }
}

template <typename T>
void attend_few(const Problem& p, std::atomic<bool>& is_out_of_memory) {
    int64_t group = p.heads / p.key_heads, num_parts = 0, work = 0;
    auto rows_of = [](const Run& run) { return run.key_row || run.value_row ? 1 : run.stop_row - run.first_row; };
    for (const Run* run = p.runs; run < p.runs + p.num_runs; run++) {
        int64_t rows = rows_of(*run), stretches = (rows * p.length * group + STRETCH - 1) / STRETCH;
        work += (run->stop_row - run->first_row) / rows * p.key_heads * stretches * run->num_keys;
    }
    // Enough pieces for all threads, and no more: each makes outputs of its own.
    int64_t each_keys = std::max<int64_t>(PIECE, (work / (16 * p.threads) + BLOCK - 1) / BLOCK * BLOCK);
    std::vector<Piece> pieces;
    for (const Run* run = p.runs; run < p.runs + p.num_runs; run++) {
        int64_t rows = rows_of(*run), queries = rows * p.length * group;
        for (int64_t row = run->first_row; row < run->stop_row; row += rows)
            for (int64_t head = 0; head < p.key_heads; head++)
                for (int64_t query = 0; query < queries; query += STRETCH)
                    for (int64_t key = 0; key < run->num_keys; key += each_keys) {
                        pieces.push_back({run, row, rows, head, query, key, std::min(key + each_keys, run->num_keys), num_parts});
                        num_parts += std::min<int64_t>(STRETCH, queries - query);
                    }
    }
    Parts parts{std::unique_ptr<float[]>(new float[num_parts * p.value_size]), std::unique_ptr<float[]>(new float[num_parts]),
                std::unique_ptr<float[]>(new float[num_parts])};
    // The parts of each query (row, head, token), one list for all, and where those of each begin.
    std::vector<int64_t> begin(p.rows * p.heads * p.length + 1), found(num_parts);
    auto each = [&](auto&& take) {
        for (const Piece& piece : pieces) {
            int64_t stop = std::min<int64_t>(piece.rows * p.length * group, piece.first_query + STRETCH);
            for (int64_t query = piece.first_query; query < stop; query++) {
                int64_t row = piece.row + query / group / p.length, head = piece.key_head * group + query % group;
                take((row * p.heads + head) * p.length + query / group % p.length, piece.place + query - piece.first_query);
            }
        }
    };
    each([&](int64_t query, int64_t) { begin[query + 1]++; });
    for (size_t i = 1; i < begin.size(); i++) begin[i] += begin[i - 1];
    std::vector<int64_t> next(begin.begin(), begin.end() - 1);
    each([&](int64_t query, int64_t part) { found[next[query]++] = part; });
#pragma omp parallel num_threads(p.threads)
    {
        Work<RowMajor<T>> few;
        Work<InLanes<T, SOME>> more;
        Work<InLanes<T, MANY>> many;
        std::vector<float> out;
#pragma omp for schedule(dynamic, 1)
        for (size_t i = 0; i < pieces.size(); i++) guarded(is_out_of_memory, [&] {
            int64_t queries = pieces[i].rows * p.length * group - pieces[i].first_query;
            if (queries <= 2 * FEW)
                attend_piece(p, pieces[i], few, parts);
            else if (queries <= SOME * LANES)
                attend_piece(p, pieces[i], more, parts);
            else
                attend_piece(p, pieces[i], many, parts);
        });
#pragma omp for schedule(static)
        for (int64_t query = 0; query < int64_t(begin.size()) - 1; query++) guarded(is_out_of_memory, [&] {
            out.assign(p.value_size, 0.0f);
            float most = LOWEST, sum = 0;
            for (int64_t i = begin[query]; i < begin[query + 1]; i++) most = std::max(most, parts.mosts[found[i]]);
            for (int64_t i = begin[query]; i < begin[query + 1]; i++) {
                int64_t part = found[i];
                float share = std::exp2(parts.mosts[part] - most);
                sum += share * parts.sums[part];
                for (int d = 0; d < p.value_size; d++) out[d] += share * parts.outs[part * p.value_size + d];
            }
            int64_t token = query % p.length, head = query / p.length % p.heads, row = query / p.length / p.heads;
            finish<T>(p, row, head, token, most, sum, [&](int d) { return out[d]; });
        });
    }
}

// Return 0, or 1 where memory has run out.
template <typename T>
int attend(const Problem& p) {
    bool is_shared = std::any_of(p.runs, p.runs + p.num_runs,
                                 [](const Run& run) { return !run.key_row && run.stop_row - run.first_row > 1; });
    std::atomic<bool> is_out_of_memory{false};
    guarded(is_out_of_memory, [&] {
        if (is_shared || p.heads / p.key_heads * p.length <= STRETCH / 2)
            attend_few<T>(p, is_out_of_memory);
        else
            attend_many<T>(p, is_out_of_memory);
    });
    return is_out_of_memory;
}

}  // namespace

extern "C" int masformer_attend_float32(const Problem* problem) { return attend<float>(*problem); }
extern "C" int masformer_attend_bfloat16(const Problem* problem) { return attend<bf16>(*problem); }

// Products of rows and a weight, fp32 or bf16, for masformer/linear.py, which arranges the weight and compiles this.
//
// Few rows take the time of reading the weight, so it is read once, in the order of its copy, and while a block of it is
// multiplied the next is fetched: a line with each word of a row; the processor itself reads ahead for the rest. A word
// is a number in fp32, two neighbours in bf16, whose products are added in fp32. A panel of the copy holds WIDTH
// outputs: for each word of a row their weights side by side.

#include <algorithm>
#include <cstdint>
#include <cstring>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

#ifdef __AVX512F__
constexpr int LANES = 16, ROWS = 8;  // words of a vector; rows whose sums are held in registers
#else
constexpr int LANES = 8, ROWS = 4;
#endif
constexpr int ACROSS = 3, WIDTH = ACROSS * LANES;  // vectors, and outputs, of a panel
constexpr int DEPTH = 64;                          // words of a row in a block
constexpr int MOST = 64;                           // rows that go through a block together

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float word __attribute__((aligned(2), may_alias));  // a row of bf16 may begin at any number

struct Float32 {
    using number = float;
    static vec add(vec sums, vec weights, word input) { return sums + weights * input; }
    static float widened(float x) { return x; }
    static float narrowed(float x) { return x; }
};

#ifdef __AVX512BF16__
struct BFloat16 {
    using number = uint16_t;
    static vec add(vec sums, vec weights, word input) {
        __m512i pairs = _mm512_castps_si512((__m512)weights), pair = _mm512_castps_si512(_mm512_set1_ps(input));
        return (vec)_mm512_dpbf16_ps((__m512)sums, (__m512bh)pairs, (__m512bh)pair);
    }
    static float widened(uint16_t x) {
        uint32_t bits = uint32_t(x) << 16;
        float wide;
        std::memcpy(&wide, &bits, sizeof wide);
        return wide;
    }
    // To the nearest, of two as near to the even one. What is no number here has zeros below, so it stays one.
    static uint16_t narrowed(float x) {
        uint32_t bits;
        std::memcpy(&bits, &x, sizeof bits);
        return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    }
};
#endif

// Some rows and a block: sums (rows, WIDTH) = before + inputs x block. Rows of `before` lie `step` numbers apart; 0
// where all begin with the bias. From `ahead` on lies what comes next: with each word of a row one line of it is
// fetched, and `pace` words are passed over.
struct Task {
    const word* input;
    const float *block, *ahead, *before;
    float* sums;
    int64_t words;  // of a row
    int depth, pace, step;
};

template <typename Dtype, int COUNT>
void multiply_rows(const Task& t) {
    vec sums[COUNT][ACROSS];
    for (int r = 0; r < COUNT; r++)
        for (int v = 0; v < ACROSS; v++) sums[r][v] = *(const vec*)(t.before + r * t.step + v * LANES);
    const float *block = t.block, *ahead = t.ahead;
    for (int i = 0; i < t.depth; i++, block += WIDTH, ahead += t.pace) {
        __builtin_prefetch(ahead);
        vec weights[ACROSS];
        for (int v = 0; v < ACROSS; v++) weights[v] = *(const vec*)(block + v * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < COUNT; r++)
            for (int v = 0; v < ACROSS; v++) sums[r][v] = Dtype::add(sums[r][v], weights[v], t.input[r * t.words + i]);
    }
    for (int r = 0; r < COUNT; r++)
        for (int v = 0; v < ACROSS; v++) *(vec*)(t.sums + r * WIDTH + v * LANES) = sums[r][v];
}

// Choose the instance for a number of rows.
template <typename Dtype, int COUNT = ROWS>
void choose_rows(const Task& t, int count) {
    if (count == COUNT)
        multiply_rows<Dtype, COUNT>(t);
    else if constexpr (COUNT > 1)
        choose_rows<Dtype, COUNT - 1>(t, count);
}

template <typename Dtype, typename Number = typename Dtype::number>
void multiply(const Number* input, const float* panels, const Number* bias, Number* out, int64_t rows, int64_t words,
              int64_t outputs, int threads) {
    const word* inputs = (const word*)input;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t first = 0; first < outputs; first += WIDTH) {
        int width = int(std::min<int64_t>(WIDTH, outputs - first));
        float start[WIDTH] = {}, sums[MOST * WIDTH];
        for (int o = 0; bias && o < width; o++) start[o] = Dtype::widened(bias[first + o]);
        for (int64_t row = 0; row < rows; row += MOST) {
            int count = int(std::min<int64_t>(MOST, rows - row)), groups = (count + ROWS - 1) / ROWS;
            int pace = (WIDTH + groups - 1) / groups;
            for (int64_t at = 0; at < words; at += DEPTH) {
                int depth = int(std::min<int64_t>(DEPTH, words - at));
                const float* block = panels + first * words + at * WIDTH;
                for (int r = 0; r < count; r += ROWS) {
                    const float* ahead = block + depth * (WIDTH + r / ROWS * pace);
                    float* to = sums + r * WIDTH;
                    const word* from = inputs + (row + r) * words + at;
                    Task task{from, block, ahead, at ? to : start, to, words, depth, pace, at ? WIDTH : 0};
                    choose_rows<Dtype>(task, std::min(ROWS, count - r));
                }
            }
            for (int r = 0; r < count; r++)
                for (int o = 0; o < width; o++)
                    out[(row + r) * outputs + first + o] = Dtype::narrowed(sums[r * WIDTH + o]);
        }
    }
}

}  // namespace

// The outputs of a panel, for the shape of the copy.
extern "C" int masformer_panel() { return WIDTH; }

// Outputs (rows, outputs) of inputs (rows, words), panels (panels, words, WIDTH) and a bias (outputs), or none. Each
// output adds words in their order, so a row gives the same bits whatever rows are beside it. In bf16 numbers below the
// normal ones count as zero.
extern "C" void masformer_multiply_float32(const float* input, const float* panels, const float* bias, float* out,
                                           int64_t rows, int64_t words, int64_t outputs, int32_t threads) {
    multiply<Float32>(input, panels, bias, out, rows, words, outputs, threads);
}

#ifdef __AVX512BF16__
extern "C" void masformer_multiply_bfloat16(const uint16_t* input, const float* panels, const uint16_t* bias,
                                            uint16_t* out, int64_t rows, int64_t words, int64_t outputs,
                                            int32_t threads) {
    multiply<BFloat16>(input, panels, bias, out, rows, words, outputs, threads);
}
#endif

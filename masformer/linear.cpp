// Products of few rows and a weight in fp32, for masformer/linear.py, which arranges the weight and compiles this.
//
// Few rows take the time of reading the weight, so it is read once, in the order of its copy, and while a block of it is
// multiplied the next one is fetched. A panel of the copy holds WIDTH outputs: for each input their weights side by side.

#include <algorithm>
#include <cstdint>

namespace {

#ifdef __AVX512F__
constexpr int LANES = 16, ROWS = 8;  // numbers of a vector; rows whose sums are held in registers
#else
constexpr int LANES = 8, ROWS = 4;
#endif
constexpr int ACROSS = 3, WIDTH = ACROSS * LANES;  // vectors, and outputs, of a panel
constexpr int DEPTH = 128;                         // inputs of a block
constexpr int MOST = 64;                           // rows that go through a block together

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

// Rows that go through a block, for some of them: sums (rows, WIDTH) are what they were `before`, every row a `step`
// further, and what the inputs add. `ahead` is the memory to fetch, so many numbers (`pace`) with each input.
struct Task {
    const float *input, *block, *ahead, *before;
    float* sums;
    int64_t stride;
    int depth, pace, step;
};

template <int COUNT>
void multiply(const Task& t) {
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
            for (int v = 0; v < ACROSS; v++) sums[r][v] += weights[v] * t.input[r * t.stride + i];
    }
    for (int r = 0; r < COUNT; r++)
        for (int v = 0; v < ACROSS; v++) *(vec*)(t.sums + r * WIDTH + v * LANES) = sums[r][v];
}

// The same for a number of rows that is known only now.
template <int COUNT = ROWS>
void multiply(const Task& t, int count) {
    if (count == COUNT)
        multiply<COUNT>(t);
    else if constexpr (COUNT > 1)
        multiply<COUNT - 1>(t, count);
}

}  // namespace

// The outputs of a panel, for the shape of the copy.
extern "C" int masformer_panel() { return WIDTH; }

// Outputs (rows, outputs) of inputs (rows, inputs), whose rows lie `stride` numbers apart, panels (panels, inputs,
// WIDTH) and a bias (outputs), or none. A sum is in the order of the inputs, whatever the number of rows.
extern "C" void masformer_multiply(const float* input, const float* panels, const float* bias, float* out, int64_t stride,
                                   int64_t rows, int64_t inputs, int64_t outputs, int32_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t first = 0; first < outputs; first += WIDTH) {
        int width = int(std::min<int64_t>(WIDTH, outputs - first));
        float start[WIDTH] = {}, sums[MOST * WIDTH];
        if (bias) std::copy_n(bias + first, width, start);
        for (int64_t row = 0; row < rows; row += MOST) {
            int count = int(std::min<int64_t>(MOST, rows - row)), groups = (count + ROWS - 1) / ROWS;
            int pace = (WIDTH + groups - 1) / groups;
            for (int64_t at = 0; at < inputs; at += DEPTH) {
                int depth = int(std::min<int64_t>(DEPTH, inputs - at));
                const float* block = panels + first * inputs + at * WIDTH;
                for (int r = 0; r < count; r += ROWS) {
                    const float* ahead = block + depth * (WIDTH + r / ROWS * pace);
                    const float* before = at ? sums + r * WIDTH : start;
                    multiply({input + (row + r) * stride + at, block, ahead, before, sums + r * WIDTH, stride, depth, pace, at ? WIDTH : 0},
                             std::min(ROWS, count - r));
                }
            }
            for (int r = 0; r < count; r++)
                for (int o = 0; o < width; o++) out[(row + r) * outputs + first + o] = sums[r * WIDTH + o];
        }
    }
}

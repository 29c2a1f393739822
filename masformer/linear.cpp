// Products of few rows and a weight in fp32, for masformer/linear.py, which arranges the weight and compiles this.
//
// Few rows take the time of reading the weight, so it is read once, in the order of its copy, and while a block of it is
// multiplied the next is fetched: a line with each input; the processor itself reads ahead for the rest. A panel of the
// copy holds WIDTH outputs: for each input their weights side by side.

#include <algorithm>
#include <cstdint>

namespace {

#ifdef __AVX512F__
constexpr int LANES = 16, ROWS = 8;  // numbers of a vector; rows whose sums are held in registers
#else
constexpr int LANES = 8, ROWS = 4;
#endif
constexpr int ACROSS = 3, WIDTH = ACROSS * LANES;  // vectors, and outputs, of a panel
constexpr int DEPTH = 64;                          // inputs of a block
constexpr int MOST = 64;                           // rows that go through a block together

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

// Some rows and a block: sums (rows, WIDTH) = before + inputs x block. Rows of `before` lie `step` numbers apart; 0
// where all begin with the bias. From `ahead` on lies what comes next: with each input one line of it is fetched, and
// `pace` numbers are passed over.
struct Task {
    const float *input, *block, *ahead, *before;
    float* sums;
    int64_t inputs;  // of a row
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
            for (int v = 0; v < ACROSS; v++) sums[r][v] += weights[v] * t.input[r * t.inputs + i];
    }
    for (int r = 0; r < COUNT; r++)
        for (int v = 0; v < ACROSS; v++) *(vec*)(t.sums + r * WIDTH + v * LANES) = sums[r][v];
}

// Choose the instance for a number of rows.
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

// Outputs (rows, outputs) of inputs (rows, inputs), panels (panels, inputs, WIDTH) and a bias (outputs), or none. Each
// output adds its products in the order of the inputs, so a row gives the same bits whatever rows are beside it.
extern "C" void masformer_multiply(const float* input, const float* panels, const float* bias, float* out, int64_t rows,
                                   int64_t inputs, int64_t outputs, int32_t threads) {
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
                    float* to = sums + r * WIDTH;
                    const float *from = input + (row + r) * inputs + at, *before = at ? to : start;
                    Task task{from, block, ahead, before, to, inputs, depth, pace, at ? WIDTH : 0};
                    multiply(task, std::min(ROWS, count - r));
                }
            }
            for (int r = 0; r < count; r++)
                for (int o = 0; o < width; o++) out[(row + r) * outputs + first + o] = sums[r * WIDTH + o];
        }
    }
}

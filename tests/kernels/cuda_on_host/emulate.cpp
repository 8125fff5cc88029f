// Runs the kernels of msda.cu on the host, one warp at a time: a stand-in for the parts of CUDA that they use.
//
// A lane is a coroutine that runs until its next shuffle; a round over all lanes of a warp then completes the shuffle,
// as the hardware does for lanes that agree on what they execute. It proves arithmetic, indices and shuffle masks. It
// proves nothing of atomics between threads, of memory ordering, or of the device's own rounding and division.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <ucontext.h>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline

using std::floor;

struct Index3 { unsigned x, y, z; };
static Index3 blockIdx, blockDim, threadIdx;

static float __int_as_float(int bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// IEEE formats of 16 bits, rounded to nearest even once, from a double (which holds every float exactly)
template <int MANTISSA, int EXPONENT>
struct Small {
    uint16_t bits;

    static constexpr int bias = (1 << (EXPONENT - 1)) - 1;

    static Small from(double x) {
        const uint16_t sign = std::signbit(x) ? 0x8000 : 0, infinity = uint16_t(((1 << EXPONENT) - 1) << MANTISSA);
        if (std::isnan(x)) return {uint16_t(infinity | 1 << (MANTISSA - 1))};
        x = std::fabs(x);
        if (std::isinf(x)) return {uint16_t(sign | infinity)};
        int exponent = x == 0 ? 1 - bias : std::max(std::ilogb(x), 1 - bias);
        // units of the last place; 2^(MANTISSA + 1) of them carry into the next exponent by themselves
        const uint32_t units = uint32_t(std::nearbyint(std::ldexp(x, MANTISSA - exponent)));
        const uint32_t encoded = units + (uint32_t(exponent + bias - 1) << MANTISSA);
        return {uint16_t(sign | (encoded >= infinity ? infinity : encoded))};
    }

    float widen() const {
        const int exponent = (bits & 0x7fff) >> MANTISSA, mantissa = bits & ((1 << MANTISSA) - 1);
        double x;
        if (exponent == (1 << EXPONENT) - 1)
            x = mantissa ? std::numeric_limits<double>::quiet_NaN() : std::numeric_limits<double>::infinity();
        else if (exponent == 0)
            x = std::ldexp(double(mantissa), 1 - bias - MANTISSA);
        else
            x = std::ldexp(double(mantissa + (1 << MANTISSA)), exponent - bias - MANTISSA);
        return float(bits & 0x8000 ? -x : x);
    }
};

typedef Small<10, 5> __half;
typedef Small<7, 8> __nv_bfloat16;
static float __half2float(__half x) { return x.widen(); }
static float __bfloat162float(__nv_bfloat16 x) { return x.widen(); }
static __half __double2half(double x) { return __half::from(x); }
static __half __float2half_rn(float x) { return __half::from(x); }
static __nv_bfloat16 __double2bfloat16(double x) { return __nv_bfloat16::from(x); }
static __nv_bfloat16 __float2bfloat16_rn(float x) { return __nv_bfloat16::from(x); }

template <typename T>
static void atomicAdd(T* to, T x) { *to += x; }

static const int WARP = 32;

struct Lane {
    ucontext_t context;
    Index3 thread;
    bool live;
    int shuffles;
    std::vector<char> stack;
};

static Lane lanes[WARP];
static ucontext_t scheduler;
static int current;
static double exchanged[2][WARP];
static std::function<void()> kernel;

template <typename T>
static T __shfl_xor_sync(unsigned mask, T x, int offset, int width) {
    const int me = current, partner = me ^ offset, turn = lanes[me].shuffles++ & 1;
    if (!(mask >> me & 1) || !(mask >> partner & 1) || !lanes[partner].live || partner / width != me / width) {
        std::fprintf(stderr, "lane %d shuffles with lane %d outside its mask %08x\n", me, partner, mask);
        std::abort();
    }
    exchanged[turn][me] = x;
    swapcontext(&lanes[me].context, &scheduler);
    return T(exchanged[turn][partner]);
}

static void run_lane() {
    kernel();
    lanes[current].live = false;
}

static void run_warp(unsigned first) {
    const unsigned threads = blockDim.x * blockDim.y;
    int live = 0;
    for (int i = 0; i < WARP; ++i) {
        Lane& lane = lanes[i];
        lane.live = first + i < threads;
        if (!lane.live) continue;
        ++live;
        lane.thread = {(first + i) % blockDim.x, (first + i) / blockDim.x, 0};
        lane.shuffles = 0;
        lane.stack.resize(64 << 10);
        getcontext(&lane.context);
        lane.context.uc_stack.ss_sp = lane.stack.data();
        lane.context.uc_stack.ss_size = lane.stack.size();
        lane.context.uc_link = &scheduler;
        makecontext(&lane.context, run_lane, 0);
    }
    while (live > 0) {
        for (current = 0; current < WARP; ++current) {
            if (!lanes[current].live) continue;
            threadIdx = lanes[current].thread;
            swapcontext(&scheduler, &lanes[current].context);
            if (!lanes[current].live) --live;
        }
    }
}

#include MSDA_SOURCE

// the kernel's own parameter types say how each 64-bit argument is meant, as cuda.core's launch does
template <typename... Parameters, std::size_t... I>
static void run(void (*function)(Parameters...), std::index_sequence<I...>, const int64_t* arguments, int64_t grid,
                unsigned x, unsigned y) {
    kernel = [=] { function((Parameters)arguments[I]...); };
    blockDim = {x, y, 1};
    for (int64_t block = 0; block < grid; ++block) {
        blockIdx = {unsigned(block), 0, 0};
        for (unsigned first = 0; first < x * y; first += WARP) run_warp(first);
    }
}

template <typename... Parameters>
static void run(void (*function)(Parameters...), const int64_t* arguments, int64_t count, int64_t grid, unsigned x,
                unsigned y) {
    if (count != int64_t(sizeof...(Parameters))) std::abort();
    run(function, std::index_sequence_for<Parameters...>(), arguments, grid, x, y);
}

extern "C" void run_forward(const int64_t* arguments, int64_t count, int64_t grid, unsigned x, unsigned y) {
    run(msda_forward, arguments, count, grid, x, y);
}

extern "C" void run_backward(const int64_t* arguments, int64_t count, int64_t grid, unsigned x, unsigned y) {
    run(msda_backward, arguments, count, grid, x, y);
}

extern "C" void run_divide(int64_t a, int64_t b, int64_t* answer) {
    long long remainder;
    answer[0] = divide(a, b, remainder);
    answer[1] = remainder;
}

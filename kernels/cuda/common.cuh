// What the CUDA kernels share: numbers of every dtype as accumulate_t and back, and the level sizes.
//
// The compiler is given VALUE_T (double, float, __half, __nv_bfloat16) and ACCUMULATE_T (double or float).

#include <cuda_bf16.h>
#include <cuda_fp16.h>

typedef VALUE_T value_t;
typedef ACCUMULATE_T accumulate_t;
typedef long long int64;

__device__ __forceinline__ accumulate_t widen(double x) { return accumulate_t(x); }
__device__ __forceinline__ accumulate_t widen(float x) { return x; }
__device__ __forceinline__ accumulate_t widen(__half x) { return __half2float(x); }
__device__ __forceinline__ accumulate_t widen(__nv_bfloat16 x) { return __bfloat162float(x); }

__device__ __forceinline__ void store(double* to, accumulate_t x) { *to = x; }
__device__ __forceinline__ void store(float* to, accumulate_t x) { *to = float(x); }
// a double is rounded once: through float it would be rounded twice
__device__ __forceinline__ void store(__half* to, double x) { *to = __double2half(x); }
__device__ __forceinline__ void store(__half* to, float x) { *to = __float2half_rn(x); }
__device__ __forceinline__ void store(__nv_bfloat16* to, double x) { *to = __double2bfloat16(x); }
__device__ __forceinline__ void store(__nv_bfloat16* to, float x) { *to = __float2bfloat16_rn(x); }

__device__ __forceinline__ accumulate_t not_a_number() { return accumulate_t(__int_as_float(0x7fffffff)); }

// One level of the pyramid. `exists` is false where the sizes cannot be true of S pixels: nothing may be read then.
struct Level {
    int height, width;
    bool exists;
};

// Where the sizes are: (h, w) pairs on the device, or, if that is null, by value, h in the upper half of 64 bits.
struct Sizes {
    const int64* levels;
    int64 by_value[8];

    __device__ __forceinline__ void read(int l, int64& height, int64& width) const {
        if (levels) {
            height = levels[2 * l];
            width = levels[2 * l + 1];
            return;
        }
        int64 both = by_value[0];
#pragma unroll
        for (int i = 1; i < 8; ++i) both = l == i ? by_value[i] : both;
        height = both >> 32;
        width = both & 0xffffffff;
    }
};

#define SIZES const int64* levels, int64 s0, int64 s1, int64 s2, int64 s3, int64 s4, int64 s5, int64 s6, int64 s7
#define READ_SIZES {levels, {s0, s1, s2, s3, s4, s5, s6, s7}}

__device__ __forceinline__ Level read_level(const Sizes& sizes, int l, int64 start, int64 S) {
    const int64 most = 0x7ffffff0;
    int64 height, width;
    sizes.read(l, height, width);
    Level level;
    level.exists = height > 0 && height < most && width > 0 && width < most && height * width <= S - start;
    level.height = int(height);
    level.width = int(width);
    return level;
}

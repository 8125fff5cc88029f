// Multi-scale deformable attention: output[b, q, h, :] = sum_{l, p} weight * bilinear(value of level l, location).
//
// Work: forward, one thread per output channel (b, q, h, d); backward, one group of lanes (a warp, or the power of two
//   that covers D) per (b, q, h), whose lanes stride over the channels and add up their parts by shuffles.
// Memory: reads value (B, S, H, D) by its strides, everything else contiguous; the forward writes each output once, the
//   backward adds to grad_value (accumulate_t, zeroed by the host) atomically and writes every other gradient once.
// Bound: instruction issue forwards (every channel repeats the coordinates), scalar atomics into L2 backwards.
// Source: the form that the CUDA operator of Deformable DETR (Zhu et al., 2021) made known; written anew.
//
// The compiler is given VALUE_T, LOCATION_T, WEIGHT_T (double, float, __half, __nv_bfloat16) and ACCUMULATE_T (double if
// any of them is, else float). Sizes arrive as 64-bit integers, and every address is computed in 64 bits.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

typedef VALUE_T value_t;
typedef LOCATION_T location_t;
typedef WEIGHT_T weight_t;
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

// quotient and remainder; 64-bit division is some hundred instructions, and rarely needed
__device__ __forceinline__ int64 divide(int64 a, int64 b, int64& remainder) {
    if (((a | b) >> 31) == 0) {
        remainder = int64(unsigned(a) % unsigned(b));
        return int64(unsigned(a) / unsigned(b));
    }
    remainder = a % b;
    return a / b;
}

// One level of the pyramid. `exists` is false where the sizes cannot be true of S pixels: nothing may be read then.
struct Level {
    int height, width;
    bool exists;
};

__device__ __forceinline__ Level read_level(const int64* levels, int64 l, int64 start, int64 S) {
    const int64 height = levels[2 * l], width = levels[2 * l + 1], most = 0x7ffffff0;
    Level level;
    level.exists = height > 0 && height < most && width > 0 && width < most && height * width <= S - start;
    level.height = int(height);
    level.width = int(width);
    return level;
}

// Where a location falls on its level: the upper left of its four pixels, and the fractions beyond it.
struct Point {
    accumulate_t dx, dy;
    int x, y;
    bool undefined;  // a NaN location: it samples NaN, and no pixel is read

    __device__ __forceinline__ Point(const location_t* location, const Level& level) {
        const accumulate_t px = clamped(widen(location[0]) * level.width - accumulate_t(0.5), level.width);
        const accumulate_t py = clamped(widen(location[1]) * level.height - accumulate_t(0.5), level.height);
        undefined = px != px || py != py;
        const accumulate_t left = undefined ? accumulate_t(-2) : floor(px);
        const accumulate_t top = undefined ? accumulate_t(-2) : floor(py);
        dx = px - left;
        dy = py - top;
        x = int(left);
        y = int(top);
    }

    // keeps infinities and far points in an int's range, just outside the level; a NaN passes through
    static __device__ __forceinline__ accumulate_t clamped(accumulate_t at, int size) {
        if (at < accumulate_t(-2)) return accumulate_t(-2);
        if (at > accumulate_t(size) + 1) return accumulate_t(size) + 1;
        return at;
    }
};

// The pixels around a point: which of them lie inside the level, and how far each is from the start of the level.
struct Corners {
    bool inside[4];   // upper left, upper right, lower left, lower right
    int64 pixel;      // of the upper left one; meaningful only with an `inside`
    int width;

    __device__ __forceinline__ Corners(const Point& point, const Level& level) {
        const bool left = point.x >= 0 && point.x < level.width, right = point.x >= -1 && point.x + 1 < level.width;
        const bool top = point.y >= 0 && point.y < level.height, bottom = point.y >= -1 && point.y + 1 < level.height;
        inside[0] = top && left;
        inside[1] = top && right;
        inside[2] = bottom && left;
        inside[3] = bottom && right;
        pixel = int64(point.y) * level.width + point.x;
        width = level.width;
    }

    __device__ __forceinline__ int64 operator[](int corner) const {
        return pixel + (corner & 1) + (corner & 2 ? width : 0);
    }

    // a pixel outside counts as zero and is not read
    __device__ __forceinline__ accumulate_t read(int corner, const value_t* plane, int64 stride) const {
        return inside[corner] ? widen(plane[(*this)[corner] * stride]) : accumulate_t(0);
    }
};

extern "C" __global__ void msda_forward(
    const value_t* value, const int64* levels, const location_t* locations, const weight_t* weights, value_t* output,
    int64 rows, int64 Q, int64 S, int64 H, int64 D, int64 L, int64 P,
    int64 stride_b, int64 stride_s, int64 stride_h, int64 stride_d) {
    const int64 row = int64(blockIdx.x) * blockDim.y + threadIdx.y;  // (b, q, h)
    if (row >= rows) return;
    int64 h, q;
    const int64 b = divide(divide(row, H, h), Q, q);
    locations += row * L * P * 2;
    weights += row * L * P;

    const int64 d = threadIdx.x;
    const value_t* channel = value + b * stride_b + h * stride_h + d * stride_d;
    accumulate_t sum = 0;
    int64 start = 0;
    bool fits = true;
    for (int64 l = 0; l < L; ++l) {
        const Level level = read_level(levels, l, start, S);
        fits = level.exists;
        if (!fits) break;
        const value_t* plane = channel + start * stride_s;
        for (int64 p = 0; p < P; ++p) {
            const Point point(locations + (l * P + p) * 2, level);
            const Corners corners(point, level);
            const accumulate_t upper = corners.read(0, plane, stride_s) * (1 - point.dx)
                                     + corners.read(1, plane, stride_s) * point.dx;
            const accumulate_t lower = corners.read(2, plane, stride_s) * (1 - point.dx)
                                     + corners.read(3, plane, stride_s) * point.dx;
            // with an undefined point dx and dy are NaN, and so is the sum
            sum += widen(weights[l * P + p]) * (upper * (1 - point.dy) + lower * point.dy);
        }
        start += int64(level.height) * level.width;
    }
    store(output + row * D + d, fits && start == S ? sum : not_a_number());
}

// sum over the `lanes` (a power of two, at most 32) neighbouring threads of a group; every lane gets it
__device__ __forceinline__ accumulate_t sum_over_group(accumulate_t x, int lanes, unsigned group) {
    for (int offset = lanes / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(group, x, offset, 32);
    return x;
}

// A null pointer in place of a gradient says that it is not needed.
extern "C" __global__ void msda_backward(
    const value_t* grad_output, const value_t* value, const int64* levels, const location_t* locations,
    const weight_t* weights, accumulate_t* grad_value, location_t* grad_locations, weight_t* grad_weights,
    int64 rows, int64 Q, int64 S, int64 H, int64 D, int64 L, int64 P,
    int64 stride_b, int64 stride_s, int64 stride_h, int64 stride_d) {
    const int64 row = int64(blockIdx.x) * blockDim.y + threadIdx.y;  // (b, q, h)
    if (row >= rows) return;                                         // a whole group leaves together
    int64 h, q;
    const int64 b = divide(divide(row, H, h), Q, q);
    const int lane = threadIdx.x, lanes = blockDim.x;
    const unsigned first = (threadIdx.y * blockDim.x) % 32;
    const unsigned group = lanes == 32 ? 0xffffffffu : ((1u << lanes) - 1) << first;
    const bool sampled = grad_locations != nullptr || grad_weights != nullptr;

    grad_output += row * D;
    locations += row * L * P * 2;
    weights += row * L * P;
    if (grad_locations) grad_locations += row * L * P * 2;
    if (grad_weights) grad_weights += row * L * P;
    if (grad_value) grad_value += (b * S * H + h) * D;  // contiguous (B, S, H, D)

    int64 total = 0;
    bool fits = true;
    for (int64 l = 0; l < L && fits; ++l) {
        const Level level = read_level(levels, l, total, S);
        fits = level.exists;
        total += fits ? int64(level.height) * level.width : 0;
    }
    if (!fits || total != S) {
        for (int64 i = lane; i < L * P; i += lanes) {
            if (grad_locations) store(grad_locations + 2 * i, not_a_number());
            if (grad_locations) store(grad_locations + 2 * i + 1, not_a_number());
            if (grad_weights) store(grad_weights + i, not_a_number());
        }
        if (grad_value && q == 0) {
            for (int64 s = 0; s < S; ++s)
                for (int64 d = lane; d < D; d += lanes) grad_value[s * H * D + d] = not_a_number();
        }
        return;
    }

    int64 start = 0;
    for (int64 l = 0; l < L; ++l) {
        const Level level = read_level(levels, l, start, S);
        const value_t* plane = value + b * stride_b + h * stride_h + start * stride_s;
        accumulate_t* grad_plane = grad_value ? grad_value + start * H * D : nullptr;
        for (int64 p = 0; p < P; ++p) {
            const int64 i = l * P + p;
            const Point point(locations + 2 * i, level);
            const Corners corners(point, level);
            const accumulate_t weight = widen(weights[i]);
            const accumulate_t share[4] = {(1 - point.dy) * (1 - point.dx), (1 - point.dy) * point.dx,
                                           point.dy * (1 - point.dx), point.dy * point.dx};
            accumulate_t by_weight = 0, by_x = 0, by_y = 0;
            for (int64 d = lane; d < D; d += lanes) {
                const accumulate_t grad = widen(grad_output[d]);
                if (grad_plane) {
                    for (int corner = 0; corner < 4; ++corner)
                        if (corners.inside[corner])
                            atomicAdd(grad_plane + corners[corner] * H * D + d, grad * weight * share[corner]);
                }
                if (sampled) {
                    const accumulate_t v0 = corners.read(0, plane + d * stride_d, stride_s);
                    const accumulate_t v1 = corners.read(1, plane + d * stride_d, stride_s);
                    const accumulate_t v2 = corners.read(2, plane + d * stride_d, stride_s);
                    const accumulate_t v3 = corners.read(3, plane + d * stride_d, stride_s);
                    by_weight += grad * (v0 * share[0] + v1 * share[1] + v2 * share[2] + v3 * share[3]);
                    by_x += grad * ((v1 - v0) * (1 - point.dy) + (v3 - v2) * point.dy);
                    by_y += grad * ((v2 - v0) * (1 - point.dx) + (v3 - v1) * point.dx);
                }
            }
            if (!sampled) continue;
            by_weight = sum_over_group(by_weight, lanes, group);
            by_x = sum_over_group(by_x, lanes, group);
            by_y = sum_over_group(by_y, lanes, group);
            if (lane != 0) continue;
            if (grad_weights) store(grad_weights + i, by_weight);
            if (grad_locations) {
                // an undefined point may have one good coordinate: both of its gradients are NaN all the same
                store(grad_locations + 2 * i, point.undefined ? not_a_number() : weight * level.width * by_x);
                store(grad_locations + 2 * i + 1, point.undefined ? not_a_number() : weight * level.height * by_y);
            }
        }
        start += int64(level.height) * level.width;
    }
}

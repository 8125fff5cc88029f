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

#include "common.cuh"

typedef LOCATION_T location_t;
typedef WEIGHT_T weight_t;

// quotient and remainder; 64-bit division is some hundred instructions, and rarely needed
__device__ __forceinline__ int64 divide(int64 a, int64 b, int64& remainder) {
    if (((a | b) >> 31) == 0) {
        remainder = int64(unsigned(a) % unsigned(b));
        return int64(unsigned(a) / unsigned(b));
    }
    remainder = a % b;
    return a / b;
}

// Where a location falls on its level, in pixels from the centre of the first. `reached` where one of the four pixels
// around it lies inside; elsewhere, far and infinite points among them, it samples zero, and a NaN location NaN.
struct Point {
    accumulate_t px, py;
    bool reached;

    __device__ __forceinline__ Point(const location_t* location, const Level& level) {
        px = widen(location[0]) * level.width - accumulate_t(0.5);
        py = widen(location[1]) * level.height - accumulate_t(0.5);
        reached = px >= -1 && py >= -1 && px < level.width && py < level.height;
    }

    __device__ __forceinline__ bool undefined() const { return px != px || py != py; }
};

// The four pixels around a point that is `reached`: which of them lie inside the level, where the first is, and the
// point's distance from it. Pixels are `stride` bytes apart, rows of them `row` bytes.
struct Corners {
    accumulate_t dx, dy;
    bool left, right, top, bottom;
    int64 pixel;

    __device__ __forceinline__ Corners(const Point& point, const Level& level) {
        const int x = int(floor(point.px)), y = int(floor(point.py));
        dx = point.px - x;
        dy = point.py - y;
        left = x >= 0;
        right = x < level.width - 1;
        top = y >= 0;
        bottom = y < level.height - 1;
        pixel = int64(y) * level.width + x;
    }
};

template <typename T>
__device__ __forceinline__ T* at(T* start, int64 bytes) { return (T*)((char*)start + bytes); }
template <typename T>
__device__ __forceinline__ const T* at(const T* start, int64 bytes) { return (const T*)((const char*)start + bytes); }

// The values of the four pixels in one channel; one outside counts as zero and is not read.
struct Values {
    accumulate_t v00, v01, v10, v11;

    // `plane` is the channel's first pixel in the level
    __device__ __forceinline__ Values(const Corners& c, const value_t* plane, int64 stride, int64 row) {
        const value_t* first = at(plane, c.pixel * stride);
        v00 = v01 = v10 = v11 = 0;
        if (c.top && c.left) v00 = widen(*first);
        if (c.top && c.right) v01 = widen(*at(first, stride));
        if (c.bottom && c.left) v10 = widen(*at(first, row));
        if (c.bottom && c.right) v11 = widen(*at(first, row + stride));
    }
};

extern "C" __global__ void msda_forward(
    const value_t* value, SIZES, const location_t* locations, const weight_t* weights, value_t* output,
    int64 rows, int64 Q, int64 S, int64 H, int64 D, int64 L, int64 P,
    int64 stride_b, int64 stride_s, int64 stride_h, int64 stride_d) {
    const int64 row = int64(blockIdx.x) * blockDim.y + threadIdx.y;  // (b, q, h)
    if (row >= rows) return;
    int64 h, q;
    const int64 b = divide(divide(row, H, h), Q, q);
    locations += row * L * P * 2;
    weights += row * L * P;

    const int64 d = threadIdx.x;
    const value_t* plane = value + b * stride_b + h * stride_h + d * stride_d;
    const int64 stride = stride_s * sizeof(value_t);
    const int points = int(P);
    const Sizes sizes = READ_SIZES;
    accumulate_t sum = 0;
    int64 start = 0;
    bool fits = true;
    for (int l = 0; l < int(L); ++l) {
        const Level level = read_level(sizes, l, start, S);
        fits = level.exists;
        if (!fits) break;
        const int64 below = level.width * stride;
#pragma unroll 1
        for (int p = 0; p < points; ++p, locations += 2, ++weights) {
            const Point point(locations, level);
            if (point.reached) {
                const Corners c(point, level);
                const Values v(c, plane, stride, below);
                const accumulate_t upper = v.v00 * (1 - c.dx) + v.v01 * c.dx, lower = v.v10 * (1 - c.dx) + v.v11 * c.dx;
                sum += widen(*weights) * (upper * (1 - c.dy) + lower * c.dy);
            } else {
                // zero, unless the location is NaN or the weight not finite
                sum += widen(*weights) * (point.undefined() ? not_a_number() : accumulate_t(0));
            }
        }
        plane = at(plane, level.height * below);
        start += int64(level.height) * level.width;
    }
    store(output + row * D + d, fits && start == S ? sum : not_a_number());
}

// sums over the `lanes` (a power of two, at most 32) neighbouring threads of a group; every lane gets them
__device__ __forceinline__ void sum_over_group(accumulate_t (&x)[3], int lanes, unsigned group) {
    if (lanes == 32) {  // a mask that is known costs nothing; any other is compared first, in five instructions a step
#pragma unroll
        for (int offset = 16; offset > 0; offset /= 2)
            for (int i = 0; i < 3; ++i) x[i] += __shfl_xor_sync(0xffffffffu, x[i], offset, 32);
    } else {
#pragma unroll 1
        for (int offset = lanes / 2; offset > 0; offset /= 2)
            for (int i = 0; i < 3; ++i) x[i] += __shfl_xor_sync(group, x[i], offset, 32);
    }
}

// A null pointer in place of a gradient says that it is not needed.
extern "C" __global__ void msda_backward(
    const value_t* grad_output, const value_t* value, SIZES, const location_t* locations, const weight_t* weights,
    accumulate_t* grad_value, location_t* grad_locations, weight_t* grad_weights,
    int64 rows, int64 Q, int64 S, int64 H, int64 D, int64 L, int64 P,
    int64 stride_b, int64 stride_s, int64 stride_h, int64 stride_d) {
    const int64 row = int64(blockIdx.x) * blockDim.y + threadIdx.y;  // (b, q, h)
    if (row >= rows) return;                                         // a whole group leaves together
    int64 h, q;
    const int64 b = divide(divide(row, H, h), Q, q);
    const int lane = threadIdx.x, lanes = blockDim.x, channels = int(D), points = int(P);
    const unsigned first = (threadIdx.y * blockDim.x) % 32;
    const unsigned group = lanes == 32 ? 0xffffffffu : ((1u << lanes) - 1) << first;
    const bool sampled = grad_locations != nullptr || grad_weights != nullptr;

    grad_output += row * D;
    locations += row * L * P * 2;
    weights += row * L * P;
    if (grad_locations) grad_locations += row * L * P * 2;
    if (grad_weights) grad_weights += row * L * P;
    if (grad_value) grad_value += (b * S * H + h) * D;  // contiguous (B, S, H, D)

    const Sizes sizes = READ_SIZES;
    int64 total = 0;
    bool fits = true;
    for (int l = 0; l < int(L) && fits; ++l) {
        const Level level = read_level(sizes, l, total, S);
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

    const value_t* plane = value + b * stride_b + h * stride_h;
    const int64 stride = stride_s * sizeof(value_t), grad_stride = H * D * sizeof(accumulate_t);
    for (int l = 0; l < int(L); ++l) {
        const Level level = read_level(sizes, l, 0, S);
        const int height = level.height, width = level.width;
        const int64 below = width * stride, grad_below = width * grad_stride;
#pragma unroll 1
        for (int p = 0; p < points; ++p) {
            const int i = l * points + p;
            const Point point(locations + 2 * i, level);
            accumulate_t by[3] = {0, 0, 0};  // of weight, x and y
            if (point.reached) {
                const Corners c(point, level);
                const accumulate_t weight = widen(weights[i]);
                const accumulate_t share00 = (1 - c.dy) * (1 - c.dx), share01 = (1 - c.dy) * c.dx;
                const accumulate_t share10 = c.dy * (1 - c.dx), share11 = c.dy * c.dx;
                for (int d = lane; d < channels; d += lanes) {
                    const accumulate_t grad = widen(grad_output[d]);
                    if (grad_value) {
                        accumulate_t* pixel = at(grad_value + d, c.pixel * grad_stride);
                        const accumulate_t part = grad * weight;
                        if (c.top && c.left) atomicAdd(pixel, part * share00);
                        if (c.top && c.right) atomicAdd(at(pixel, grad_stride), part * share01);
                        if (c.bottom && c.left) atomicAdd(at(pixel, grad_below), part * share10);
                        if (c.bottom && c.right) atomicAdd(at(pixel, grad_below + grad_stride), part * share11);
                    }
                    if (sampled) {
                        const Values v(c, plane + d * stride_d, stride, below);
                        by[0] += grad * (v.v00 * share00 + v.v01 * share01 + v.v10 * share10 + v.v11 * share11);
                        by[1] += grad * ((v.v01 - v.v00) * (1 - c.dy) + (v.v11 - v.v10) * c.dy);
                        by[2] += grad * ((v.v10 - v.v00) * (1 - c.dx) + (v.v11 - v.v01) * c.dx);
                    }
                }
                by[1] *= weight * width;
                by[2] *= weight * height;
            } else if (point.undefined()) {
                by[0] = by[1] = by[2] = not_a_number();
            }
            if (!sampled) continue;
            sum_over_group(by, lanes, group);
            if (lane != 0) continue;
            if (grad_weights) store(grad_weights + i, by[0]);
            if (grad_locations) {
                store(grad_locations + 2 * i, by[1]);
                store(grad_locations + 2 * i + 1, by[2]);
            }
        }
        plane = at(plane, height * below);
        if (grad_value) grad_value = at(grad_value, height * grad_below);
    }
}

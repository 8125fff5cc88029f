// Backward of multi-scale deformable attention, plain or fused: with g = grad_output[b, q, h, :], v_c the four pixels
// around a point, c their bilinear coefficients and a its weight,
//     grad_value[pixel] += a * c * g     grad of the weight = g . sum of c * v_c     slope = a * g . (differences of v_c)
//
// Work: one block takes the points of TILE queries of a head. It sorts them by cell, the square between four pixels, in
//   shared memory, and hands each group of LANES threads an equal part of them, VEC channels a thread. A group walks its
//   points in order: pixels and sums of the current cell stay in registers, and where a cell ends the sums of its left
//   pixels are added to grad_value. The right ones go on with the walk if the next cell is the neighbour.
// Memory: inputs once, but value's rows once for each cell of a tile; 16 bytes a point of shared memory; grad_value
//   (float, zeroed by the host) gets two to four rows a cell, instead of four a point, by vector reductions.
// Bound, as predicted and not yet measured: instruction issue.
// Source: the sums of runs of the sorted backward (kernels/triton), without its global sort and temporary memory.
//
// The compiler is given D (16, 32, 64 or 128), HEADS, LEVELS (at most 16), POINTS, STRIDE (elements between pixels of
// value), TILE (a power of two from 32 to 256, TILE * LEVELS * POINTS at most 4096), THREADS (a power of two from 128),
// BLOCKS (that fit on a multiprocessor), VEC (4 or 8), FUSED, BOXES (references of four coordinates), NEED_VALUE,
// NEED_SLOPES, the dtypes VALUE_T, POINT_T, WEIGHT_T and REFERENCE_T, and SHARED_BYTES, the host's count.

#include "common.cuh"

typedef POINT_T point_t;
typedef WEIGHT_T weight_t;
typedef REFERENCE_T reference_t;

constexpr int EACH = LEVELS * POINTS;    // points of a query
constexpr int COUNT = TILE * EACH;       // points of a tile
constexpr int TURNS = (COUNT + THREADS - 1) / THREADS;
constexpr int LANES = D / VEC;           // threads that share a row
constexpr int PARTS = VEC / 4;           // thread i has channels 4 * i to 4 * i + 3 of each part of a row
constexpr int GROUPS = THREADS / LANES;  // walks
constexpr int CHUNK = LANES < 8 ? LANES : 8;  // points that a walk takes at a time
constexpr unsigned ALL = 0xffffffffu;

__device__ constexpr int floor_power_of_2(int n) { return n < 2 ? 1 : 2 * floor_power_of_2(n / 2); }
__device__ constexpr int log_2(int n) { return n < 2 ? 0 : 1 + log_2(n / 2); }
// a level's bins: its cells modulo so many columns and rows, so that a tile of neighbours has about one cell a bin
constexpr int BINS_OF_LEVEL = floor_power_of_2(COUNT / LEVELS);
constexpr int BIN_ROWS = 1 << log_2(BINS_OF_LEVEL) / 2, BIN_COLUMNS = BINS_OF_LEVEL / BIN_ROWS;
constexpr int BINS_OF_THREAD = (BINS_OF_LEVEL * LEVELS + 4 * THREADS - 1) / (4 * THREADS) * 4;
// a query's points lie side by side in a warp: sums over them are shuffles
constexpr bool IN_WARP = EACH <= 32 && (EACH & (EACH - 1)) == 0;

// A cell in 32 bits: its upper left pixel among the S, its level, and which of the four pixels lie inside the level.
constexpr int UPPER_LEFT = 1, UPPER_RIGHT = 2, LOWER_LEFT = 4, LOWER_RIGHT = 8;
constexpr int NO_CELL = int(0x80000000);
constexpr int NO_POINT = COUNT;  // behind a tile's points: it lies in no cell, and its weight is zero

struct __align__(8) Half4 { unsigned low, high; };
template <typename T> struct Four { typedef Half4 type; };
template <> struct Four<float> { typedef float4 type; };
typedef typename Four<value_t>::type four_t;  // of value, in memory

__device__ __forceinline__ float4 widen4(float4 x) { return x; }
__device__ __forceinline__ float4 widen4(Half4 x) {
    if constexpr (sizeof(value_t) == 2) {
        value_t part[4];
        memcpy(part, &x, 8);
        return make_float4(widen(part[0]), widen(part[1]), widen(part[2]), widen(part[3]));
    }
    return make_float4(0, 0, 0, 0);
}

struct Shared {
    float4 records[COUNT + 1];  // of a point: cell, dx, dy, weight; then grad of the weight, both slopes, weight
    union {
        __align__(16) int bins[BINS_OF_THREAD * THREADS];  // how many points, then where the first goes
        four_t grads[(TILE + 1) * D / 4];                  // g of each query, and of none
    };
    unsigned short order[COUNT + GROUPS * CHUNK];
    int queries[TILE];  // -1 beyond the last
    int heights[LEVELS], widths[LEVELS], starts[LEVELS];
    float peaks[IN_WARP ? 1 : TILE], scales[IN_WARP ? 1 : TILE];  // of a query's softmax; then the mean score
    int sums[32];
    int total;
    bool consistent;
};
static_assert(sizeof(Shared) <= SHARED_BYTES, "SHARED_BYTES: too few for what a block keeps");
static_assert(COUNT <= 4096 && LEVELS <= 16 && TILE <= 256, "a number of the layout does not fit");

// The query at a place of a head's order. An encoder's pixels are taken in bands of 16 rows, column by column, so that
// the queries of a tile, and their points, are neighbours in both directions.
__device__ __forceinline__ int query_at(const Shared& shared, int place, int Q, bool encoder) {
    if (place >= Q) return -1;
    if (!encoder) return place;
    int l = 0;
#pragma unroll
    for (int i = 1; i < LEVELS; ++i) l = place >= shared.starts[i] ? i : l;
    const int width = shared.widths[l], inside = place - shared.starts[l], band = inside / (16 * width);
    const int high = min(16, shared.heights[l] - 16 * band), rest = inside - 16 * band * width;
    const int column = rest / high, row = 16 * band + rest - column * high;
    return shared.starts[l] + row * width + column;
}

// Adds to four neighbouring numbers, in no order.
__device__ __forceinline__ void add4(float* to, const float* x) {
#if __CUDA_ARCH__ >= 900
    asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};"
                 :: "l"(to), "f"(x[0]), "f"(x[1]), "f"(x[2]), "f"(x[3]) : "memory");
#else
#pragma unroll
    for (int d = 0; d < 4; ++d) atomicAdd(to + d, x[d]);
#endif
}

// What a thread carries from point to point: its channels of the current cell's pixels, and of what is added to them.
// Of a pixel outside the level neither means anything: its sum is not added, its dot products are replaced by zero.
struct Walk {
    const Shared& shared;
    const value_t* value;  // the thread's channels in pixel 0
    float* grad_value;
    int lane;
    int cell = NO_CELL;
    float *upper = nullptr, *lower = nullptr;      // the left pixels' place in grad_value
    float pixels[4][VEC] = {}, sums[4][VEC] = {};  // upper left, upper right, lower left, lower right

    // adds the sums of a column, 0 or 1, to its two pixels
    __device__ __forceinline__ void flush(int column) const {
#pragma unroll
        for (int part = 0; part < PARTS; ++part) {
            const int to = column * HEADS * D + part * 4 * LANES;
            if (cell & (UPPER_LEFT << column)) add4(upper + to, &sums[column][4 * part]);
            if (cell & (LOWER_LEFT << column)) add4(lower + to, &sums[2 + column][4 * part]);
        }
    }

    __device__ __forceinline__ void load(int corner, const value_t* from) {
        if (!(cell & (1 << corner))) return;
#pragma unroll
        for (int part = 0; part < PARTS; ++part) {
            const float4 x = widen4(*reinterpret_cast<const four_t*>(from + part * 4 * LANES));
            float* to = &pixels[corner][4 * part];
            to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
        }
    }

    __device__ __forceinline__ void move(int next) {
        // the next cell of the row: pixel, level, and its left pixels inside where the right ones of this are
        const int lefts = UPPER_LEFT | LOWER_LEFT, rights = UPPER_RIGHT | LOWER_RIGHT;
        const bool neighbour = (next & ~rights) == (((cell & ~15) + 256) | (cell >> 1 & lefts));
        if (NEED_VALUE) {
            flush(0);
            if (!neighbour) flush(1);
        }
        cell = next;
        const int pixel = cell >> 8, below = pixel + shared.widths[cell >> 4 & 15];
        upper = grad_value + int64(pixel) * (HEADS * D);
        lower = grad_value + int64(below) * (HEADS * D);
#pragma unroll
        for (int line = 0; line < 4; line += 2) {
#pragma unroll
            for (int d = 0; d < VEC; ++d) {
                sums[line][d] = neighbour ? sums[line + 1][d] : 0.f;
                sums[line + 1][d] = 0;
                if (neighbour) pixels[line][d] = pixels[line + 1][d];
            }
        }
        if (NEED_SLOPES) {
            const value_t *above = value + int64(pixel) * STRIDE, *under = value + int64(below) * STRIDE;
            if (!neighbour) {
                load(0, above);
                load(2, under);
            }
            load(1, above + STRIDE);
            load(3, under + STRIDE);
        }
    }

    // Takes point number `at` of the order: this thread's part of its four dot products.
    __device__ __forceinline__ void step(int at, float (&dots)[4]) {
        const int point = shared.order[at];
        const float4 record = shared.records[point];
        const int next = __float_as_int(record.x);
        if (next != cell) move(next);
        float g[VEC];
#pragma unroll
        for (int part = 0; part < PARTS; ++part) {
            const float4 x = widen4(shared.grads[(point / EACH * PARTS + part) * LANES + lane]);
            g[4 * part] = x.x, g[4 * part + 1] = x.y, g[4 * part + 2] = x.z, g[4 * part + 3] = x.w;
        }
        const float lower_share = record.w * record.z, upper_share = record.w - lower_share;
        const float right = upper_share * record.y, lower_right = lower_share * record.y;
        const float shares[4] = {upper_share - right, right, lower_share - lower_right, lower_right};
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
            dots[corner] = 0;
#pragma unroll
            for (int d = 0; d < VEC; ++d) {
                if (NEED_SLOPES) dots[corner] += g[d] * pixels[corner][d];
                if (NEED_VALUE) sums[corner][d] += shares[corner] * g[d];
            }
        }
    }

    // Takes CHUNK points from number `at` on. Of two points each thread keeps the sums of one, and sends those of the
    // other to its neighbour; of two pairs so, to the thread two lanes away, and so on: in the end lane i has the dot
    // products of point i.
    __device__ __forceinline__ void steps(int at, float (&dots)[4]) {
        float kept[log_2(CHUNK)][4];
#pragma unroll 4
        for (int i = 0; i < CHUNK; ++i) {
            step(at + i, dots);
            if (!NEED_SLOPES) continue;
#pragma unroll
            for (int level = 0; level < log_2(CHUNK); ++level) {
                const int apart = 1 << level;
                if (!(i & apart)) {
#pragma unroll
                    for (int corner = 0; corner < 4; ++corner) kept[level][corner] = dots[corner];
                    break;
                }
                const bool second = lane & apart;
#pragma unroll
                for (int corner = 0; corner < 4; ++corner) {
                    const float sent = second ? kept[level][corner] : dots[corner];
                    dots[corner] = (second ? dots[corner] : kept[level][corner]) + __shfl_xor_sync(ALL, sent, apart);
                }
            }
        }
    }
};

extern __shared__ float4 dynamic_shared[];

// A null pointer in place of a gradient says that it is not needed.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) msda_backward_tiles(
    const value_t* grad_output, const value_t* value, SIZES, const point_t* points, const weight_t* weights,
    const reference_t* references, float* grad_value, point_t* grad_points, weight_t* grad_weights,
    float* grad_references, int64 S, int64 Q, int64 tiles, int64 encoder,
    int64 grad_output_b, int64 grad_output_q, int64 value_b, int64 value_h,
    int64 points_b, int64 points_q, int64 points_h, int64 weights_b, int64 weights_q, int64 weights_h,
    int64 references_b, int64 references_q, int64 references_l) {
    Shared& shared = *reinterpret_cast<Shared*>(dynamic_shared);
    const int thread = threadIdx.x;
    const unsigned tile = blockIdx.x % unsigned(tiles), row = blockIdx.x / unsigned(tiles);
    const int64 b = row / HEADS, h = row % HEADS;
    constexpr int H = HEADS;

    // the levels, and the queries of this tile
    if (thread == 0) {
        const Sizes sizes = READ_SIZES;
        int64 start = 0;
        bool fits = true;
        for (int l = 0; l < LEVELS && fits; ++l) {
            const Level level = read_level(sizes, l, start, S);
            fits = level.exists;
            shared.heights[l] = level.height, shared.widths[l] = level.width, shared.starts[l] = int(start);
            start += int64(level.height) * level.width;
        }
        shared.consistent = fits && start == S;
    }
    for (int i = thread; i < BINS_OF_THREAD * THREADS; i += THREADS) shared.bins[i] = 0;
    if (thread == 0) shared.records[NO_POINT] = make_float4(__int_as_float(NO_CELL), 0, 0, 0);
    __syncthreads();
    if (!shared.consistent) {
        for (int i = thread; i < COUNT; i += THREADS) {
            const int64 place = int64(tile) * TILE + i / EACH, at = ((b * Q + place) * H + h) * EACH + i % EACH;
            if (place >= Q) continue;
            if (grad_points) store(grad_points + 2 * at, not_a_number()), store(grad_points + 2 * at + 1, not_a_number());
            if (grad_weights) store(grad_weights + at, not_a_number());
            const int kept = BOXES ? 4 : 2, from = i % EACH;
            if (grad_references && from % POINTS == 0)
                for (int k = 0; k < kept; ++k)
                    grad_references[(((b * Q + place) * H + h) * LEVELS + from / POINTS) * kept + k] = not_a_number();
        }
        if (NEED_VALUE && tile == 0)
            for (int64 i = thread; i < S * D; i += THREADS)
                grad_value[((b * S + i / D) * H + h) * D + i % D] = not_a_number();
        return;
    }
    for (int i = thread; i < TILE; i += THREADS)
        shared.queries[i] = query_at(shared, int(tile) * TILE + i, int(Q), encoder != 0);
    __syncthreads();

    points += b * points_b + h * points_h;
    weights += b * weights_b + h * weights_h;
    if (FUSED) references += b * references_b;
    if (FUSED && !IN_WARP) {
        for (int i = thread; i < TILE; i += THREADS) {
            const weight_t* logits = weights + max(shared.queries[i], 0) * weights_q;
            float peak = widen(logits[0]), sum = 0;
            for (int j = 1; j < EACH; ++j) peak = fmaxf(peak, widen(logits[j]));
            for (int j = 0; j < EACH; ++j) sum += __expf(widen(logits[j]) - peak);
            shared.peaks[i] = peak, shared.scales[i] = 1 / sum;
        }
        __syncthreads();
    }

    // a record for every point, a bin and its number in it for those that reach a pixel
    int slots[TURNS];
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn) {
        const int i = turn * THREADS + thread, t = i / EACH, j = i - t * EACH, l = j / POINTS;
        slots[turn] = -1;
        if (i >= COUNT) continue;  // a whole warp: COUNT is a multiple of 32
        const int q = shared.queries[t];
        float weight = q < 0 ? 0.f : widen(weights[q * weights_q + j]);
        if (FUSED) {
            if constexpr (IN_WARP) {
                float peak = weight;
#pragma unroll
                for (int apart = 1; apart < EACH; apart *= 2) peak = fmaxf(peak, __shfl_xor_sync(ALL, peak, apart));
                weight = __expf(weight - peak);
                float sum = weight;
#pragma unroll
                for (int apart = 1; apart < EACH; apart *= 2) sum += __shfl_xor_sync(ALL, sum, apart);
                weight = __fdividef(weight, sum);
            } else {
                weight = __expf(weight - shared.peaks[t]) * shared.scales[t];
            }
        }
        if (q < 0) continue;
        const point_t* point = points + q * points_q + 2 * j;
        const int height = shared.heights[l], width = shared.widths[l];
        float x = widen(point[0]), y = widen(point[1]);
        if (FUSED) {
            const reference_t* reference = references + q * references_q + l * references_l;
            if (BOXES) {
                x *= widen(reference[2]) * (width * (0.5f / POINTS));
                y *= widen(reference[3]) * (height * (0.5f / POINTS));
            }
            x += widen(reference[0]) * width - 0.5f;
            y += widen(reference[1]) * height - 0.5f;
        } else {
            x = x * width - 0.5f;
            y = y * height - 0.5f;
        }
        if (x >= -1 && y >= -1 && x < width && y < height) {
            const int column = int(floorf(x)), line = int(floorf(y));
            const int left = column >= 0, right = column < width - 1, upper = line >= 0, lower = line < height - 1;
            const int inside = (upper & left) * UPPER_LEFT | (upper & right) * UPPER_RIGHT |
                               (lower & left) * LOWER_LEFT | (lower & right) * LOWER_RIGHT;
            const unsigned pixel = shared.starts[l] + line * width + column;
            const int cell = int(pixel << 8 | unsigned(l) << 4 | unsigned(inside));
            shared.records[i] = make_float4(__int_as_float(cell), x - column, y - line, weight);
            const int bin = (l * BIN_ROWS + (line & (BIN_ROWS - 1))) * BIN_COLUMNS + (column & (BIN_COLUMNS - 1));
            slots[turn] = bin << 16 | atomicAdd(&shared.bins[bin], 1);
        } else {  // zero, unless the location is NaN, or for a slope the weight not finite
            const float score = x != x || y != y ? not_a_number() : 0.f, slope = weight * score;
            shared.records[i] = make_float4(score, slope, slope, weight);
        }
    }
    __syncthreads();

    // where each bin's points go: how many lie in the bins before
    {
        const int lane = thread & 31, warp = thread >> 5;
        int4* bins = reinterpret_cast<int4*>(shared.bins) + thread * (BINS_OF_THREAD / 4);
        int own = 0;
#pragma unroll
        for (int k = 0; k < BINS_OF_THREAD / 4; ++k) own += bins[k].x + bins[k].y + bins[k].z + bins[k].w;
        int until = own;
#pragma unroll
        for (int apart = 1; apart < 32; apart *= 2) {
            const int other = __shfl_up_sync(ALL, until, apart);
            if (lane >= apart) until += other;
        }
        if (lane == 31) shared.sums[warp] = until;
        __syncthreads();
        int before = until - own;
        for (int w = 0; w < warp; ++w) before += shared.sums[w];
#pragma unroll
        for (int k = 0; k < BINS_OF_THREAD / 4; ++k) {
            const int4 counts = bins[k];
            const int x = before, y = x + counts.x, z = y + counts.y, w = z + counts.z;
            bins[k] = make_int4(x, y, z, w);
            before = w + counts.w;
        }
        if (thread == THREADS - 1) shared.total = before;
        __syncthreads();
    }
    const int total = shared.total, each = (total + GROUPS * CHUNK - 1) / (GROUPS * CHUNK) * CHUNK;
#pragma unroll
    for (int turn = 0; turn < TURNS; ++turn)
        if (slots[turn] >= 0)
            shared.order[shared.bins[slots[turn] >> 16] + (slots[turn] & 0xffff)] = turn * THREADS + thread;
    for (int i = total + thread; i < each * GROUPS; i += THREADS) shared.order[i] = NO_POINT;
    __syncthreads();

    grad_output += b * grad_output_b + h * D;
    for (int i = thread; i < TILE * D / 4; i += THREADS) {
        const int q = max(shared.queries[i / (D / 4)], 0);
        const value_t* from = grad_output + q * grad_output_q + i % (D / 4) * 4;
        shared.grads[i] = *reinterpret_cast<const four_t*>(from);
    }
    if (thread < D / 4) shared.grads[TILE * D / 4 + thread] = four_t{};
    __syncthreads();

    {
        const int lane = thread % LANES;
        Walk walk{shared, value + b * value_b + h * value_h + lane * 4, grad_value + (b * S * H + h) * D + lane * 4,
                  lane};
        const int first = thread / LANES * each;
#pragma unroll 1
        for (int at = first; at < first + each; at += CHUNK) {
            float dots[4];
            walk.steps(at, dots);
            if (!NEED_SLOPES) continue;
#pragma unroll
            for (int apart = CHUNK; apart < LANES; apart *= 2)
                for (int corner = 0; corner < 4; ++corner) dots[corner] += __shfl_xor_sync(ALL, dots[corner], apart);
            __syncwarp();  // every lane has read the records that are replaced now
            if (lane >= CHUNK) continue;
            const int point = shared.order[at + lane];
            if (point == NO_POINT) continue;
            const float4 record = shared.records[point];
            const int cell = __float_as_int(record.x);
#pragma unroll
            for (int corner = 0; corner < 4; ++corner) dots[corner] = cell & (1 << corner) ? dots[corner] : 0.f;
            const float dx = record.y, dy = record.z, twist = dots[3] - dots[2] - dots[1] + dots[0];
            const float upper = dots[0] + dx * (dots[1] - dots[0]), lower = dots[2] + dx * (dots[3] - dots[2]);
            shared.records[point] =
                make_float4(upper + dy * (lower - upper), record.w * (dots[1] - dots[0] + dy * twist),
                            record.w * (dots[2] - dots[0] + dx * twist), record.w);
        }
        if (NEED_VALUE) {
            walk.flush(0);
            walk.flush(1);
        }
    }
    if (!NEED_SLOPES) return;
    __syncthreads();

    // the small gradients, in the order of memory
    if (FUSED && !IN_WARP) {
        for (int i = thread; i < TILE; i += THREADS) {
            float mean = 0;
            for (int j = 0; j < EACH && shared.queries[i] >= 0; ++j)
                mean += shared.records[i * EACH + j].w * shared.records[i * EACH + j].x;
            shared.peaks[i] = mean;
        }
        __syncthreads();
    }
#pragma unroll 1
    for (int turn = 0; turn < TURNS; ++turn) {
        const int i = turn * THREADS + thread, t = i / EACH, j = i - t * EACH, l = j / POINTS;
        if (i >= COUNT) break;
        const int q = shared.queries[t];
        const float4 record = q < 0 ? make_float4(0, 0, 0, 0) : shared.records[i];
        float score = record.x;
        if (FUSED) {
            float mean = record.w * record.x;
            if constexpr (IN_WARP) {
#pragma unroll
                for (int apart = 1; apart < EACH; apart *= 2) mean += __shfl_xor_sync(ALL, mean, apart);
            } else {
                mean = shared.peaks[t];
            }
            score = record.w * (score - mean);
        }
        if (q < 0) continue;
        const int64 at = ((b * Q + q) * H + h) * EACH + j;
        if (grad_weights) store(grad_weights + at, score);
        if (grad_points) {
            float along_x = shared.widths[l], along_y = shared.heights[l];
            if (FUSED) {
                const reference_t* reference = references + q * references_q + l * references_l;
                along_x = BOXES ? widen(reference[2]) * (along_x * (0.5f / POINTS)) : 1.f;
                along_y = BOXES ? widen(reference[3]) * (along_y * (0.5f / POINTS)) : 1.f;
            }
            store(grad_points + 2 * at, record.y * along_x);
            store(grad_points + 2 * at + 1, record.z * along_y);
        }
    }
    if (!FUSED || !grad_references) return;
    for (int i = thread; i < TILE * LEVELS; i += THREADS) {
        const int t = i / LEVELS, l = i % LEVELS, q = shared.queries[t];
        if (q < 0) continue;
        float sums[4] = {0, 0, 0, 0};  // by x, y, width and height
        for (int p = 0; p < POINTS; ++p) {
            const float4 record = shared.records[i * POINTS + p];
            sums[0] += record.y, sums[1] += record.z;
            if (BOXES) {
                const point_t* point = points + q * points_q + 2 * (l * POINTS + p);
                sums[2] += record.y * widen(point[0]) * (0.5f / POINTS);
                sums[3] += record.z * widen(point[1]) * (0.5f / POINTS);
            }
        }
        const int kept = BOXES ? 4 : 2;
        float* to = grad_references + (((b * Q + q) * H + h) * LEVELS + l) * kept;
        for (int k = 0; k < kept; ++k) to[k] = sums[k] * (k % 2 ? shared.heights[l] : shared.widths[l]);
    }
}

// What grouped_conv2d.cu does for a residual block, its macros the same, without a GELU or statistics: four warps
// convolve, while four others copy what comes next, take the product of what is convolved and write it.
//
// A program takes UNITS tiles of 16 frames and TILE_CHANNELS channels at once, with all bins, STEP of them a step, and
// then others. A convolving warp has the taps of 32 channels in registers for good and the sums of three bins: what it
// loads of a bin goes into all of them. The product is one step behind the convolution, and the copies STAGES - 1 ahead.
//
// taps (9, CHANNELS / 16, KERNEL_CHANNELS / 16) and kernel (CHANNELS / 16, CHANNELS / 8) as in grouped_conv2d.cu.

constexpr int WARPS = 4, OTHERS = WARPS * LANES, TILE_FRAMES = 16;
constexpr int FRAME_TILES = (FRAMES + TILE_FRAMES - 1) / TILE_FRAMES, TILES = BATCH * FRAME_TILES;
constexpr int PASSES = KERNEL_CHANNELS / 16, GROUPS = TILE_CHANNELS / 32, UNITS = WARPS / GROUPS;
constexpr int ROUNDS = (TILES + UNITS - 1) / UNITS, STEPS = BINS / STEP;
// 16 bytes more than a row has let the rows of a matrix lie in different banks.
constexpr int IN_PITCH = STEP * TILE_CHANNELS + 8, OUT_PITCH = TILE_CHANNELS + 8, RESULT_PITCH = 32 + 8;
constexpr int IN_UNIT = (TILE_FRAMES + 2) * IN_PITCH, OUT_ROW = TILE_FRAMES * OUT_PITCH;
constexpr int OUT_UNIT = (STEP + 1) * OUT_ROW, CHUNKS = STEP * TILE_CHANNELS / 8;
static_assert(STEP % 3 == 0 && BINS % STEP == 0 && OTHERS % (TILE_CHANNELS / 8) == 0);

extern "C" __global__ void __launch_bounds__(2 * OTHERS, 1) streamed_conv2d(
    const bf16* x,
#if MASKED
    const int* mask,
#endif
#if RESIDUAL
    const bf16* residual,
#endif
    const uint4* taps,
#if POINTWISE
    const uint2* kernel, const float* bias,
#endif
#if SCALED
    const float* gain, const float* offset,
#endif
    bf16* out) {
    bf16* in_tiles = (bf16*)shared_memory;
    bf16* out_tiles = in_tiles + STAGES * UNITS * IN_UNIT;
    const int program = blockIdx.x, programs = gridDim.x, channel0 = blockIdx.y * TILE_CHANNELS;
    const int steps = (ROUNDS - program + programs - 1) / programs * STEPS;
    const int warp = threadIdx.x / LANES % WARPS, lane = threadIdx.x % LANES;
    // A warp's share of what its kind does.
    const int own_unit = warp / GROUPS, own_channels = warp % GROUPS * 32;
    const int row = lane & 15, half = lane >> 4 << 3, group = lane >> 2, pair = lane & 3;
    auto tile_of = [&](int step, int unit) { return (step / STEPS * programs + program) * UNITS + unit; };

    if (threadIdx.x < OTHERS) {
        u32 w[9][2][PASSES][4];
#pragma unroll
        for (int tap = 0; tap < 9; tap++)
#pragma unroll
            for (int block = 0; block < 2; block++)
#pragma unroll
                for (int k = 0; k < PASSES; k++) {
                    const int out_block = tap * (CHANNELS / 16) + (channel0 + own_channels) / 16 + block;
                    uint4 v = taps[(out_block * PASSES + k) * LANES + lane];
                    u32(&b)[4] = w[tap][block][k];
                    b[0] = v.x, b[1] = v.y, b[2] = v.z, b[3] = v.w;
                }
        // Those of bin i are at i % 3.
        float sums[3][4][4] = {};
        __syncthreads();
        for (int step = 0; step <= steps; step++) {
            const bool first = step % STEPS == 0, last = step % STEPS == STEPS - 1;
            const bf16* rows =
                in_tiles + (step % STAGES * UNITS + own_unit) * IN_UNIT + row * IN_PITCH + half + own_channels;
            bf16* to = out_tiles + (step % 2 * UNITS + own_unit) * OUT_UNIT + group * OUT_PITCH + own_channels + pair * 2;
            u32 a[2][4];
            // The i-th operand of a step: 16 channels of a frame and its neighbours of every bin.
            auto load = [&](int i) {
                load_matrices(a[i & 1], rows + i / 2 % 3 * IN_PITCH + i / 6 * TILE_CHANNELS + i % 2 * 16);
            };
            auto finish = [&](int at, int bin) {
#pragma unroll
                for (int n = 0; n < 4; n++) {
                    float(&s)[4] = sums[bin % 3][n];
                    *(u32*)(to + at * OUT_ROW + 8 * n) = packed(s[0], s[1]);
                    *(u32*)(to + at * OUT_ROW + 8 * n + 8 * OUT_PITCH) = packed(s[2], s[3]);
                    s[0] = s[1] = s[2] = s[3] = 0.0f;
                }
            };
            if (step < steps) {
                load(0);
#pragma unroll
                for (int bin = 0; bin < STEP; bin++) {
#pragma unroll
                    for (int i = 0; i < 6; i++) {
                        const int time = i / 2, k = i % 2;
                        if (bin * 6 + i + 1 < STEP * 6) load(bin * 6 + i + 1);
#pragma unroll
                        for (int freq = 0; freq < 3; freq++) {
                            if ((bin == 0 && freq == 2 && first) || (bin == STEP - 1 && freq == 0 && last)) continue;
#pragma unroll
                            for (int block = 0; block < 2; block++) {
                                if (PASSES == 1 && block != k) continue;
                                float(&s)[4][4] = sums[(bin + 4 - freq) % 3];
                                const u32(&b)[4] = w[time * 3 + freq][block][PASSES == 1 ? 0 : k];
                                multiply_add(s[2 * block], a[i & 1], b[0], b[1]);
                                multiply_add(s[2 * block + 1], a[i & 1], b[2], b[3]);
                            }
                        }
                    }
                    if (bin > 0 || !first) finish(bin, bin + 2);
                }
                if (last) finish(STEP, STEP - 1);
            }
            __syncthreads();
        }
        return;
    }

    const int thread = threadIdx.x - OTHERS;
    // Of eight values of a step's tiles: where they are in x, or -1 where they count as zeros.
    auto source = [&](int step, int i) -> long long {
        const int unit = i / ((TILE_FRAMES + 2) * CHUNKS), column = i % CHUNKS * 8, tile = tile_of(step, unit);
        const int frame = tile % FRAME_TILES * TILE_FRAMES + i / CHUNKS % (TILE_FRAMES + 2) - 1;
        bool valid = (u32)frame < (u32)FRAMES && tile < TILES;
        const long long place = (long long)(tile / FRAME_TILES) * FRAMES + frame;
#if MASKED
        valid = valid && mask[place];
#endif
        const int bin = step % STEPS * STEP + column / TILE_CHANNELS;
        return valid ? (place * BINS + bin) * CHANNELS + channel0 + column % TILE_CHANNELS : -1;
    };
    auto place_of = [&](int step, int i) {
        return in_tiles + step % STAGES * UNITS * IN_UNIT + i / CHUNKS * IN_PITCH + i % CHUNKS * 8;
    };
    auto copy = [&](int step) {
        if (step < steps)
#pragma unroll 2
            for (int i = thread; i < UNITS * (TILE_FRAMES + 2) * CHUNKS; i += OTHERS) {
                const long long from = source(step, i);
                copy_async(place_of(step, i), x + (from < 0 ? 0 : from), from >= 0);
            }
        end_of_copies();
    };
#if POINTWISE
    constexpr int N = 4, K = CHANNELS / 16;
    bf16* result = out_tiles + 2 * UNITS * OUT_UNIT + warp * 2 * TILE_FRAMES * RESULT_PITCH;
    u32 p[K][N][2];
    float b[N][2];
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int k = 0; k < K; k++) {
            uint2 v = kernel[(k * (CHANNELS / 8) + own_channels / 8 + n) * LANES + lane];
            p[k][n][0] = v.x, p[k][n][1] = v.y;
        }
        b[n][0] = bias[own_channels + n * 8 + pair * 2], b[n][1] = bias[own_channels + n * 8 + pair * 2 + 1];
    }
#if SCALED
    float g[N][2], o[N][2];
#pragma unroll
    for (int i = 0; i < 2 * N; i++) {
        const int channel = own_channels + i / 2 * 8 + pair * 2 + i % 2;
        g[i / 2][i % 2] = gain[channel], o[i / 2][i % 2] = offset[channel];
    }
#endif
#endif
    // Of one or two bins the convolution and what follows it, 32 channels: a lane writes eight of frames `group` and
    // `group` + 8.
    auto write = [&](const int bins, const bf16* convolved, long long to, const bool (&exist)[2]) {
#if RESIDUAL
        uint4 r[2][2];
#pragma unroll
        for (int bin = 0; bin < bins; bin++)
#pragma unroll
            for (int j = 0; j < 2; j++)
                if (exist[j]) r[bin][j] = *(const uint4*)(residual + to + (j * 8 * BINS + bin) * CHANNELS);
#endif
#if POINTWISE
        float sums[2][N][4];
#pragma unroll
        for (int bin = 0; bin < bins; bin++)
#pragma unroll
            for (int n = 0; n < N; n++)
                sums[bin][n][0] = sums[bin][n][2] = b[n][0], sums[bin][n][1] = sums[bin][n][3] = b[n][1];
#pragma unroll
        for (int k = 0; k < K; k++)
#pragma unroll
            for (int bin = 0; bin < bins; bin++) {
                u32 a[4];
                load_matrices(a, convolved + bin * OUT_ROW + row * OUT_PITCH + half + k * 16);
#pragma unroll
                for (int n = 0; n < N; n++) multiply_add(sums[bin][n], a, p[k][n][0], p[k][n][1]);
            }
#pragma unroll
        for (int bin = 0; bin < bins; bin++)
#pragma unroll
            for (int n = 0; n < N; n++) {
                float(&s)[4] = sums[bin][n];
#if SCALED
#pragma unroll
                for (int e = 0; e < 4; e++) s[e] = fmaxf(s[e], 0.0f) * g[n][e & 1] + o[n][e & 1];
#endif
                bf16* at = result + (bin * TILE_FRAMES + group) * RESULT_PITCH + n * 8 + pair * 2;
                *(u32*)at = packed(s[0], s[1]);
                *(u32*)(at + 8 * RESULT_PITCH) = packed(s[2], s[3]);
            }
        __syncwarp();
#endif
#pragma unroll
        for (int bin = 0; bin < bins; bin++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
#if POINTWISE
                const int frame = bin * TILE_FRAMES + group + 8 * j;
                uint4 v = *(const uint4*)(result + frame * RESULT_PITCH + pair * 8);
#else
                const int frame = group + 8 * j;
                uint4 v = *(const uint4*)(convolved + bin * OUT_ROW + frame * OUT_PITCH + own_channels + pair * 8);
#endif
#if RESIDUAL
                const uint4 q = r[bin][j];
                v.x = added(v.x, q.x), v.y = added(v.y, q.y), v.z = added(v.z, q.z), v.w = added(v.w, q.w);
#endif
#if RELU
                v.x = positive(v.x), v.y = positive(v.y), v.z = positive(v.z), v.w = positive(v.w);
#endif
                if (exist[j]) *(uint4*)(out + to + (j * 8 * BINS + bin) * CHANNELS) = v;
            }
#if POINTWISE
        __syncwarp();
#endif
    };

    for (int step = 0; step < STAGES - 1; step++) copy(step);
    wait_for_copies<STAGES - 2>();
    __syncthreads();
    for (int step = 0; step <= steps; step++) {
        copy(step + STAGES - 1);
        if (step > 0) {
            const int before = (step - 1) % STEPS * STEP - 1, tile = tile_of(step - 1, own_unit);
            const int frame = tile % FRAME_TILES * TILE_FRAMES + group;
            bool exist[2] = {tile < TILES && frame < FRAMES, tile < TILES && frame + 8 < FRAMES};
            const bf16* convolved = out_tiles + ((step - 1) % 2 * UNITS + own_unit) * OUT_UNIT;
            const long long place = (long long)(tile / FRAME_TILES) * FRAMES + frame;
            const int end = before + 1 + STEP == BINS ? STEP + 1 : STEP;
            auto rows = [&](const int bins, int i) {
                const long long to = (place * BINS + before + i) * CHANNELS + channel0 + own_channels + pair * 8;
                write(bins, convolved + i * OUT_ROW, to, exist);
            };
            int i = before < 0 ? 1 : 0;
            for (; i + 1 < end; i += 2) rows(2, i);
            if (i < end) rows(1, i);
        }
        wait_for_copies<STAGES - 2>();
        __syncthreads();
    }
}

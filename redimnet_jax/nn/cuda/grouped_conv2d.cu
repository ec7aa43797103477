// A grouped 3x3 convolution of x (batch, FRAMES, BINS, CHANNELS) under zero padding and, where POINTWISE is 1, a product
// of its values with a kernel, plus a bias. Around the two, each where its macro is 1:
//   GELU      the product is that of gelu(conv + shift);
//   SCALED    what of the product is above 0, times a gain, plus an offset;
//   RESIDUAL  a map is added;
//   RELU      the result is at least 0.
// Where STATISTICS is 1, of the convolution its sums alone.
//
// A program takes 16 frames, TILE_BINS bins and TILE_CHANNELS channels of an utterance. It copies them and their
// neighbours to shared memory once, and a warp takes STRIP bins of 16 channels, one after the other: what it loads of
// a bin serves the bins before and after it. The kernel is block-diagonal in blocks of KERNEL_CHANNELS (16 or 32), of
// which a warp has the taps of 16 input channels in registers: of 32, it takes its bins twice. With POINTWISE, a
// program has all channels, and N_WARPS of its 8 warps share the output channels of a bin.
//
// taps (9, CHANNELS / 16, KERNEL_CHANNELS / 16) and kernel (CHANNELS / 16, CHANNELS / 8) are in the order in which
// the lanes of a warp take them. `statistics` (batch, FRAME_TILES x bin tiles, channel tiles, BLOCKS, STRIPS, 2, 16) are
// sums of the convolution and of its squares, of every strip.

constexpr int THREADS = 256, WARPS = THREADS / LANES, TILE_FRAMES = 16;
constexpr int FRAME_TILES = (FRAMES + TILE_FRAMES - 1) / TILE_FRAMES;
constexpr bool ALL_BINS = TILE_BINS == BINS, WHOLE_FRAMES = ALL_BINS && TILE_CHANNELS == CHANNELS;
constexpr int LOADED_BINS = ALL_BINS ? BINS : TILE_BINS + 2;
constexpr int BLOCKS = TILE_CHANNELS / 16, PASSES = KERNEL_CHANNELS / 16;
constexpr int STRIPS = (TILE_BINS + STRIP - 1) / STRIP, TASKS = (BLOCKS * STRIPS + WARPS - 1) / WARPS;
// 16 bytes more than a row has let the rows of a matrix lie in different banks.
constexpr int IN_PITCH = LOADED_BINS * TILE_CHANNELS + 8, OUT_PITCH = TILE_BINS * TILE_CHANNELS + 8;
constexpr int IN_CHUNKS = LOADED_BINS * TILE_CHANNELS / 8, OUT_CHUNKS = TILE_BINS * TILE_CHANNELS / 8;

extern "C" __global__ void __launch_bounds__(THREADS, 2) grouped_conv2d(
    const bf16* x,
#if MASKED
    const int* mask,
#endif
#if RESIDUAL
    const bf16* residual,
#endif
    const uint4* taps,
#if GELU
    const float* shift,
#endif
#if POINTWISE
    const uint2* kernel, const float* bias,
#endif
#if SCALED
    const float* gain, const float* offset,
#endif
#if STATISTICS
    float* statistics) {
#else
    bf16* out) {
#endif
    bf16* in_tile = (bf16*)shared_memory;
    bf16* out_tile = in_tile + (TILE_FRAMES + 2) * IN_PITCH;
    const int utterance = blockIdx.x / FRAME_TILES, frame0 = blockIdx.x % FRAME_TILES * TILE_FRAMES;
    const int bin0 = blockIdx.y / (CHANNELS / TILE_CHANNELS) * TILE_BINS;
    const int channel0 = blockIdx.y % (CHANNELS / TILE_CHANNELS) * TILE_CHANNELS;
    const int loaded0 = ALL_BINS ? 0 : bin0 - 1;
    const int thread = threadIdx.x, warp = thread / LANES, lane = thread % LANES;
    const long long before = (long long)utterance * FRAMES * BINS * CHANNELS;
    x += before;

    // Of eight values of the tile: where they are in x, or -1 where they count as zeros.
    auto source = [&](int i) {
        const int row = i / IN_CHUNKS, column = i % IN_CHUNKS * 8;
        int from = ((frame0 - 1) * IN_CHUNKS + i) * 8;
        bool valid = (u32)from < (u32)(FRAMES * BINS * CHANNELS);
        if (!WHOLE_FRAMES) {
            const int frame = frame0 + row - 1, bin = loaded0 + column / TILE_CHANNELS;
            valid = (u32)frame < (u32)FRAMES && (u32)bin < (u32)BINS;
            from = (frame * BINS + bin) * CHANNELS + channel0 + column % TILE_CHANNELS;
        }
#if MASKED
        valid = valid && mask[utterance * FRAMES + frame0 + row - 1];
#endif
        return valid ? from : -1;
    };
#pragma unroll 4
    for (int i = thread; i < (TILE_FRAMES + 2) * IN_CHUNKS; i += THREADS) {
        const int from = source(i);
        copy_async(in_tile + i / IN_CHUNKS * IN_PITCH + i % IN_CHUNKS * 8, x + (from < 0 ? 0 : from), from >= 0);
    }
    end_of_copies();

    // Where a lane reads rows of matrices: frames 0 to 7 and 8 to 15, then the same of the next 8 channels.
    const int row = lane & 15, half = lane >> 4 << 3;
    // Where a lane holds sums: frames `group` and `group` + 8, columns 2 * `pair` and the next.
    const int group = lane >> 2, pair = lane & 3;

    u32 w[9][4];
    auto load_taps = [&](int of) {
#pragma unroll
        for (int tap = 0; tap < 9; tap++) {
            uint4 v = taps[((tap * (CHANNELS / 16) + channel0 / 16) * PASSES + of) * LANES + lane];
            w[tap][0] = v.x, w[tap][1] = v.y, w[tap][2] = v.z, w[tap][3] = v.w;
        }
    };
    // Consecutive strips, mostly of the same channels, whose taps then stay: the passes change their order every time.
    int task = warp * TASKS, taps_of = task / STRIPS * PASSES + task % PASSES;
    if (task < BLOCKS * STRIPS) load_taps(taps_of);
    wait_for_copies<0>();
    __syncthreads();

#if STATISTICS
    constexpr int CHANNEL_TILES = CHANNELS / TILE_CHANNELS;
    constexpr int BIN_TILES = (BINS + TILE_BINS - 1) / TILE_BINS;
    const int bin_tile = blockIdx.y / CHANNEL_TILES, channel_tile = blockIdx.y % CHANNEL_TILES;
    statistics += ((blockIdx.x * BIN_TILES + bin_tile) * CHANNEL_TILES + channel_tile) * (BLOCKS * STRIPS * 32);
    const bool exist[2] = {frame0 + group < FRAMES, frame0 + group + 8 < FRAMES};
#endif
    for (; task < (warp + 1) * TASKS && task < BLOCKS * STRIPS; task++) {
        const int block = task / STRIPS, first = task % STRIPS * STRIP;
        float sums[STRIP][2][4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
#if GELU
            const float start = shift[block * 16 + (j >> 1) * 8 + pair * 2 + (j & 1)];
#else
            const float start = 0.0f;
#endif
#pragma unroll
            for (int i = 0; i < STRIP; i++) sums[i][j >> 1][j & 1] = sums[i][j >> 1][(j & 1) + 2] = start;
        }
#if STATISTICS
        float totals[2][4] = {};
#endif
        auto finish = [&](int done) {
            if (first + done >= TILE_BINS) return;
            bf16* to = out_tile + group * OUT_PITCH + (first + done) * TILE_CHANNELS + block * 16 + pair * 2;
#pragma unroll
            for (int j = 0; j < 2; j++) {
                float(&s)[4] = sums[done][j];
#if GELU
#pragma unroll
                for (int e = 0; e < 4; e++) s[e] = gelu(s[e]);
#endif
#if STATISTICS
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const float v = exist[e >> 1] && bin0 + first + done < BINS ? s[e] : 0.0f;
                    totals[0][2 * j + (e & 1)] += v, totals[1][2 * j + (e & 1)] += v * v;
                }
#else
                *(u32*)(to + 8 * j) = packed(s[0], s[1]);
                *(u32*)(to + 8 * j + 8 * OUT_PITCH) = packed(s[2], s[3]);
#endif
            }
        };
        auto exists = [&](int i) { return (u32)(bin0 + first + i) < (u32)BINS; };
#pragma unroll 1
        for (int pass = 0; pass < PASSES; pass++) {
            const int inputs = (pass + task) % PASSES, needed = block * PASSES + inputs;
            if (needed != taps_of) load_taps(taps_of = needed);
            const bf16* rows = in_tile + row * IN_PITCH + half + (block / PASSES * PASSES + inputs) * 16;
            u32 a[2][3][4];
            auto load_bin = [&](int i) {
                if (!exists(i)) return;
#pragma unroll
                for (int time = 0; time < 3; time++)
                    load_matrices(a[i & 1][time],
                                  rows + time * IN_PITCH + (bin0 + first + i - loaded0) * TILE_CHANNELS);
            };
            load_bin(-1);
            // While the products of a bin are under way, the next is loaded and the one that is done with leaves.
#pragma unroll
            for (int i = -1; i <= STRIP + 1; i++) {
                if (i < STRIP) load_bin(i + 1);
                if (i <= STRIP && exists(i)) {
#pragma unroll
                    for (int time = 0; time < 3; time++)
#pragma unroll
                        for (int freq = 0; freq < 3; freq++) {
                            const int o = i - freq + 1;
                            if (o < 0 || o >= STRIP) continue;
                            const u32(&b)[4] = w[time * 3 + freq];
                            multiply_add(sums[o][0], a[i & 1][time], b[0], b[1]);
                            multiply_add(sums[o][1], a[i & 1][time], b[2], b[3]);
                        }
                }
                if (PASSES == 1 && i >= 2) finish(i - 2);
            }
        }
        if (PASSES > 1) {
#pragma unroll
            for (int i = 0; i < STRIP; i++) finish(i);
        }
#if STATISTICS
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float total = totals[i >> 2][i & 3];
            for (int lanes = 4; lanes < LANES; lanes *= 2) total += __shfl_xor_sync(~0u, total, lanes);
            if (group == 0) statistics[task * 32 + (i >> 2) * 16 + (i >> 1 & 1) * 8 + pair * 2 + (i & 1)] = total;
        }
#endif
    }

#if POINTWISE
    constexpr int N = CHANNELS / 8 / N_WARPS, K = CHANNELS / 16;
    const int n0 = warp % N_WARPS * N;
    u32 p[K][N][2];
    float b[N][2];
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int k = 0; k < K; k++) {
            uint2 v = kernel[(k * (CHANNELS / 8) + n0 + n) * LANES + lane];
            p[k][n][0] = v.x, p[k][n][1] = v.y;
        }
        b[n][0] = bias[(n0 + n) * 8 + pair * 2], b[n][1] = bias[(n0 + n) * 8 + pair * 2 + 1];
    }
#if SCALED
    float g[N][2], o[N][2];
#pragma unroll
    for (int i = 0; i < 2 * N; i++) {
        const int channel = (n0 + i / 2) * 8 + pair * 2 + i % 2;
        g[i / 2][i % 2] = gain[channel], o[i / 2][i % 2] = offset[channel];
    }
#endif
    __syncthreads();
    for (int bin = warp / N_WARPS; bin < TILE_BINS; bin += WARPS / N_WARPS) {
        float sums[N][4];
#pragma unroll
        for (int n = 0; n < N; n++) sums[n][0] = sums[n][2] = b[n][0], sums[n][1] = sums[n][3] = b[n][1];
#pragma unroll
        for (int k = 0; k < K; k++) {
            u32 a[4];
            load_matrices(a, out_tile + row * OUT_PITCH + half + bin * CHANNELS + k * 16);
#pragma unroll
            for (int n = 0; n < N; n++) multiply_add(sums[n], a, p[k][n][0], p[k][n][1]);
        }
#if SCALED
#pragma unroll
        for (int i = 0; i < 4 * N; i++)
            sums[i / 4][i % 4] = fmaxf(sums[i / 4][i % 4], 0.0f) * g[i / 4][i % 2] + o[i / 4][i % 2];
#endif
        // What was copied of x is done with: its place takes the sums.
        bf16* to = in_tile + group * IN_PITCH + bin * CHANNELS + n0 * 8 + pair * 2;
#pragma unroll
        for (int n = 0; n < N; n++) {
            *(u32*)(to + 8 * n) = packed(sums[n][0], sums[n][1]);
            *(u32*)(to + 8 * n + 8 * IN_PITCH) = packed(sums[n][2], sums[n][3]);
        }
    }
#endif
#if !STATISTICS
    out += before;
#if RESIDUAL
    residual += before;
#endif
    __syncthreads();

#pragma unroll 4
    for (int i = thread; i < TILE_FRAMES * OUT_CHUNKS; i += THREADS) {
        const int frame = i / OUT_CHUNKS, column = i % OUT_CHUNKS * 8, bin = bin0 + column / TILE_CHANNELS;
        if (frame0 + frame >= FRAMES || (!ALL_BINS && bin >= BINS)) continue;
        int at = (frame0 * OUT_CHUNKS + i) * 8;
        if (!WHOLE_FRAMES)
            at = ((frame0 + frame) * BINS + bin) * CHANNELS + channel0 + column % TILE_CHANNELS;
#if POINTWISE
        uint4 v = *(const uint4*)(in_tile + frame * IN_PITCH + column);
#else
        uint4 v = *(const uint4*)(out_tile + frame * OUT_PITCH + column);
#endif
#if RESIDUAL
        uint4 r = *(const uint4*)(residual + at);
        v.x = added(v.x, r.x), v.y = added(v.y, r.y), v.z = added(v.z, r.z), v.w = added(v.w, r.w);
#endif
#if RELU
        v.x = positive(v.x), v.y = positive(v.y), v.z = positive(v.z), v.w = positive(v.w);
#endif
        *(uint4*)(out + at) = v;
    }
#endif
}

// A residual block of depthwise 3x3 convolutions under zero padding, of x (batch, FRAMES, BINS, CHANNELS):
// h = relu(conv(x) kernel + bias) gain + shift, then y = conv(h) kernel + bias with other weights, and where RESIDUAL
// is 1 relu(x + y), else y.
//
// A program takes TILE_FRAMES frames of an utterance with all bins and channels, and the frames around them. In shared
// memory a bin is a position of PITCH channels, and a frame has one more, of zeros, before its bins: the neighbours of
// a position in frequency are the next ones, in time those WIDTH away. A product of a convolution takes 16 positions
// and 8 channels, with a diagonal matrix for each of nine taps; the pointwise product overwrites the positions that it
// has read. Channels are filled up with zeros to a multiple of 8.
//
// taps (2, 9, COLUMNS) and kernels (2, COLUMNS / 16, rounded up, COLUMNS / 8), in the order in which the lanes of a
// warp take them, are those of both halves; vectors (4, COLUMNS) are bias, gain, shift and the second bias.

constexpr int THREADS = WARPS * LANES, COLUMNS = (CHANNELS + 7) / 8 * 8, BLOCKS = COLUMNS / 8;
// An odd number of 16 bytes, so that neighbours lie in different banks.
constexpr int PITCH = (BLOCKS | 1) * 8, WIDTH = BINS + 1, BIN_TILES = (BINS + 15) / 16;
// Beyond the last frame: what a tile of bins reads there, in its first place zeros.
constexpr int BEYOND = BIN_TILES * 16 + 1 - BINS;
constexpr int FRAME_TILES = (FRAMES + TILE_FRAMES - 1) / TILE_FRAMES;
constexpr int VECTOR = CHANNELS % 8 == 0 ? 8 : CHANNELS % 4 == 0 ? 4 : 2, VECTORS = CHANNELS / VECTOR;
constexpr int K = (COLUMNS + 15) / 16;

struct __align__(2 * VECTOR) Vector { u32 pairs[VECTOR / 2]; };

// Frame i of `to` from frames i, i + 1 and i + 2 of `from`.
template <int N_FRAMES, int STRIP>
DEVICE void convolve(const bf16* from, bf16* to, const bf16* taps) {
    constexpr int STRIPS = (N_FRAMES + STRIP - 1) / STRIP, UNITS = BIN_TILES * STRIPS, PAIRS = (UNITS + 1) / 2;
    constexpr int TASKS = (BLOCKS * PAIRS + WARPS - 1) / WARPS;
    const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES, group = lane >> 2, pair = lane & 3;
    for (int task = warp * TASKS; task < (warp + 1) * TASKS && task < BLOCKS * PAIRS; task++) {
        const int block = task / PAIRS, first = task % PAIRS * 2;
        u32 w[9];
#pragma unroll
        for (int tap = 0; tap < 9; tap++) {
            const u32 v = taps[tap * COLUMNS + block * 8 + group];
            w[tap] = group >> 1 == pair ? v << (group & 1) * 16 : 0;
        }
        // A lane gives the address of a position of the first or the second of two units, each 16 bins of a strip.
        const int own = first + (lane >> 4) < UNITS ? first + (lane >> 4) : first, frame0 = own / BIN_TILES * STRIP;
        const bf16* at = from + (own % BIN_TILES * 16 + (lane & 15)) * PITCH + block * 8;
        u32 a[2][3][4];
        auto load_frame = [&](int i) {
            const int frame = frame0 + i < N_FRAMES + 1 ? frame0 + i : N_FRAMES + 1;
#pragma unroll
            for (int freq = 0; freq < 3; freq++) load_matrices(a[i & 1][freq], at + (frame * WIDTH + freq) * PITCH);
        };
        float sums[STRIP][2][4] = {};
        load_frame(0);
#pragma unroll
        for (int i = 0; i < STRIP + 2; i++) {
            if (i < STRIP + 1) load_frame(i + 1);
#pragma unroll
            for (int freq = 0; freq < 3; freq++)
#pragma unroll
                for (int time = 0; time < 3; time++) {
                    const int o = i - time;
                    if (o < 0 || o >= STRIP) continue;
#pragma unroll
                    for (int unit = 0; unit < 2; unit++)
                        multiply_add(sums[o][unit], a[i & 1][freq][2 * unit], a[i & 1][freq][2 * unit + 1],
                                     w[time * 3 + freq]);
                }
            const int done = i - 2;
            if (done < 0) continue;
#pragma unroll
            for (int unit = 0; unit < 2; unit++) {
                const int frame = (first + unit) / BIN_TILES * STRIP + done;
                const int bin = (first + unit) % BIN_TILES * 16 + group;
                const float(&s)[4] = sums[done < 0 ? 0 : done][unit];
                bf16* place = to + (frame * WIDTH + bin + 1) * PITCH + block * 8 + pair * 2;
                if (frame >= N_FRAMES) continue;
                if (bin < BINS) *(u32*)place = packed(s[0], s[1]);
                if (bin + 8 < BINS) *(u32*)(place + 8 * PITCH) = packed(s[2], s[3]);
            }
        }
    }
}

// `finish` of the pointwise product of every position of `tile`, in its place. `finish` takes whether `inside` says
// that a position counts, a pair of channels and their sums.
template <int COUNT, int M, class Inside, class Finish>
DEVICE void mix(bf16* tile, const uint2* kernel, const float* bias, Inside inside, Finish finish) {
    constexpr int TASKS = (COUNT + 16 * M - 1) / (16 * M);
    const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES, group = lane >> 2, pair = lane & 3;
    for (int task = warp; task < TASKS; task += WARPS) {
        u32 a[M][K][4];
        bool counts[M][2];
#pragma unroll
        for (int m = 0; m < M; m++) {
            const int first = (task * M + m) * 16, position = first + (lane & 15);
            const bf16* at = tile + (position < COUNT ? position : COUNT - 1) * PITCH;
#pragma unroll
            for (int k = 0; k < K; k++) load_matrices(a[m][k], at + k * 16 + (k * 16 + 8 < COLUMNS ? lane >> 4 << 3 : 0));
            counts[m][0] = inside(first + group), counts[m][1] = inside(first + group + 8);
        }
        __syncwarp();
#pragma unroll
        for (int n = 0; n < BLOCKS; n++) {
            const float2 start = ((const float2*)bias)[n * 4 + pair];
            float sums[M][4];
#pragma unroll
            for (int m = 0; m < M; m++) sums[m][0] = sums[m][2] = start.x, sums[m][1] = sums[m][3] = start.y;
#pragma unroll
            for (int k = 0; k < K; k++) {
                const uint2 b = kernel[(k * BLOCKS + n) * LANES + lane];
#pragma unroll
                for (int m = 0; m < M; m++)
                    if (k * 16 + 8 < COLUMNS) multiply_add(sums[m], a[m][k], b.x, b.y);
                    else multiply_add(sums[m], a[m][k][0], a[m][k][1], b.x);
            }
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const int position = (task * M + m) * 16 + group + 8 * half;
                    if (position < COUNT)
                        *(u32*)(tile + position * PITCH + n * 8 + pair * 2) =
                            finish(counts[m][half], n * 4 + pair, sums[m][2 * half], sums[m][2 * half + 1]);
                }
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 16 / WARPS) depthwise_residual(
    const bf16* x,
#if MASKED
    const int* mask,
#endif
    const bf16* taps, const uint2* kernels, const float* vectors, bf16* out) {
    const float *bias1 = vectors, *gain = vectors + COLUMNS, *shift = gain + COLUMNS, *bias2 = shift + COLUMNS;
    bf16 *x_tile = (bf16*)shared_memory, *h_tile = x_tile + ((TILE_FRAMES + 4) * WIDTH + BEYOND) * PITCH;
    const int utterance = blockIdx.x / FRAME_TILES, frame0 = blockIdx.x % FRAME_TILES * TILE_FRAMES;
    const int thread = threadIdx.x;
    x += (long long)utterance * FRAMES * BINS * CHANNELS;
    out += (long long)utterance * FRAMES * BINS * CHANNELS;
    auto counts = [&](int frame) {
        bool valid = (u32)frame < (u32)FRAMES;
#if MASKED
        valid = valid && mask[utterance * FRAMES + frame];
#endif
        return valid;
    };

#pragma unroll 4
    for (int i = thread; i < (TILE_FRAMES + 4) * BINS * VECTORS; i += THREADS) {
        const int bins = i / VECTORS, row = bins / BINS, bin = bins % BINS, frame = frame0 + row - 2;
        const bool valid = counts(frame);
        const bf16* from = x + (valid ? (frame0 - 2) * BINS * CHANNELS + i * VECTOR : 0);
        copy_async<2 * VECTOR>(x_tile + (row * WIDTH + bin + 1) * PITCH + i % VECTORS * VECTOR, from, valid);
    }
    end_of_copies();
    for (int i = thread; i < (TILE_FRAMES + 5) * (COLUMNS / 2); i += THREADS)
        *(u32*)(x_tile + i / (COLUMNS / 2) * WIDTH * PITCH + i % (COLUMNS / 2) * 2) = 0;
    if (COLUMNS > CHANNELS) {
        constexpr int FILL = COLUMNS > CHANNELS ? (COLUMNS - CHANNELS) / 2 : 1;
        for (int i = thread; i < (TILE_FRAMES + 4) * WIDTH * FILL; i += THREADS)
            *(u32*)(x_tile + i / FILL * PITCH + CHANNELS + i % FILL * 2) = 0;
    }
    wait_for_copies<0>();
    __syncthreads();

    convolve<TILE_FRAMES + 2, STRIP1>(x_tile, h_tile, taps);
    __syncthreads();
    // Zeros at the edges and in frames that do not count: h is what the second convolution pads.
    mix<(TILE_FRAMES + 2) * WIDTH + 1, TILES_A_WARP>(
        h_tile, kernels, bias1,
        [&](int position) { return position % WIDTH > 0 && counts(frame0 - 1 + position / WIDTH); },
        [&](bool inside, int pair, float a, float b) {
            const float2 g = ((const float2*)gain)[pair], s = ((const float2*)shift)[pair];
            return inside ? packed(fmaxf(a, 0.0f) * g.x + s.x, fmaxf(b, 0.0f) * g.y + s.y) : 0;
        });
    __syncthreads();
    convolve<TILE_FRAMES, STRIP2>(h_tile, x_tile, taps + 9 * COLUMNS);
    __syncthreads();
    mix<TILE_FRAMES * WIDTH, TILES_A_WARP>(
        x_tile, kernels + K * BLOCKS * LANES, bias2, [](int) { return true; },
        [](bool, int, float a, float b) { return packed(a, b); });
    __syncthreads();

#pragma unroll 4
    for (int i = thread; i < TILE_FRAMES * BINS * VECTORS; i += THREADS) {
        const int bins = i / VECTORS, row = bins / BINS, bin = bins % BINS;
        if (frame0 + row >= FRAMES) break;
        const int at = frame0 * BINS * CHANNELS + i * VECTOR;
        Vector y = *(const Vector*)(x_tile + (row * WIDTH + bin + 1) * PITCH + i % VECTORS * VECTOR);
#if RESIDUAL
        const Vector r = *(const Vector*)(x + at);
#pragma unroll
        for (int j = 0; j < VECTOR / 2; j++) y.pairs[j] = positive(added(y.pairs[j], r.pairs[j]));
#endif
        *(Vector*)(out + at) = y;
    }
}

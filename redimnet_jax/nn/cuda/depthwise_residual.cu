// A residual block of depthwise 3x3 convolutions under zero padding, of x (batch, FRAMES, BINS, CHANNELS):
// h = relu(conv(x) kernel + bias) gain + shift, then y = conv(h) kernel + bias with other weights, and where RESIDUAL
// is 1 relu(x + y), else y.
//
// A program takes TILE_FRAMES frames of an utterance with all bins and channels, and the frames around them. A tap of
// a convolution is a diagonal matrix; the pointwise product overwrites the positions that it has read.
//
// taps (2, 9, COLUMNS) and kernels (2, COLUMNS / 16, rounded up, COLUMNS / 8), in the order in which the lanes of a
// warp take them, are those of both halves; vectors (4, COLUMNS) are bias, gain, shift and the second bias.

using Map = Positions<WARPS, BINS, CHANNELS>;
constexpr int COLUMNS = 8 * Map::BLOCKS, WIDTH = Map::WIDTH, K = (Map::BLOCKS + 1) / 2;
constexpr int FRAME_TILES = (FRAMES + TILE_FRAMES - 1) / TILE_FRAMES;

template <int N_FRAMES, int STRIP>
DEVICE void convolve_each(const bf16* from, bf16* to, const bf16* taps) {
    const int lane = threadIdx.x % LANES, group = lane >> 2, pair = lane & 3;
    convolve<Map, Map, N_FRAMES, STRIP, 1>(
        from, to,
        [&](int block, int, int tap) {
            const u32 w = taps[tap * COLUMNS + block * 8 + group];
            return group >> 1 == pair ? w << (group & 1) * 16 : 0;
        },
        [](int, float a, float b) { return packed(a, b); });
}

extern "C" __global__ void __launch_bounds__(WARPS* LANES, 16 / WARPS) depthwise_residual(
    const bf16* x,
#if MASKED
    const int* mask,
#endif
    const bf16* taps, const uint2* kernels, const float* vectors, bf16* out) {
    bf16 *x_tile = (bf16*)shared_memory, *h_tile = x_tile + Map::size(TILE_FRAMES + 4);
    const float *bias1 = vectors, *gain = vectors + COLUMNS, *shift = gain + COLUMNS, *bias2 = shift + COLUMNS;
    const int utterance = blockIdx.x / FRAME_TILES, frame0 = blockIdx.x % FRAME_TILES * TILE_FRAMES;
    x += (long long)utterance * FRAMES * BINS * CHANNELS;
    out += (long long)utterance * FRAMES * BINS * CHANNELS;
    auto counts = [&](int frame) {
        bool valid = (u32)frame < (u32)FRAMES;
#if MASKED
        valid = valid && mask[utterance * FRAMES + frame];
#endif
        return valid;
    };

    Map::load<TILE_FRAMES + 4>(x_tile, x, frame0 - 2, counts);
    convolve_each<TILE_FRAMES + 2, STRIP1>(x_tile, h_tile, taps);
    __syncthreads();
    // Zeros at the edges and in frames that do not count: the second convolution's padding.
    mix<Map, Map, (TILE_FRAMES + 2) * WIDTH + 1, TILES_A_WARP>(
        h_tile, h_tile, kernels, bias1,
        [&](int position) { return position % WIDTH > 0 && counts(frame0 - 1 + position / WIDTH); },
        [&](bool inside, int pair, float a, float b) {
            const float2 g = ((const float2*)gain)[pair], s = ((const float2*)shift)[pair];
            return inside ? packed(fmaxf(a, 0.0f) * g.x + s.x, fmaxf(b, 0.0f) * g.y + s.y) : 0;
        });
    __syncthreads();
    convolve_each<TILE_FRAMES, STRIP2>(h_tile, x_tile, taps + 9 * COLUMNS);
    __syncthreads();
    mix<Map, Map, TILE_FRAMES * WIDTH, TILES_A_WARP>(
        x_tile, x_tile, kernels + K * Map::BLOCKS * LANES, bias2, [](int) { return true; },
        [](bool, int, float a, float b) { return packed(a, b); });
    __syncthreads();

#pragma unroll 4
    for (int i = threadIdx.x; i < TILE_FRAMES * BINS * Map::VECTORS; i += Map::THREADS) {
        const int at = frame0 * BINS * CHANNELS + i * Map::VECTOR;
        if (at >= FRAMES * BINS * CHANNELS) break;
        Map::Vector y = *(const Map::Vector*)Map::vector(x_tile, i);
#if RESIDUAL
        const Map::Vector r = *(const Map::Vector*)(x + at);
#pragma unroll
        for (int j = 0; j < Map::VECTOR / 2; j++) y.pairs[j] = positive(added(y.pairs[j], r.pairs[j]));
#endif
        *(Map::Vector*)(out + at) = y;
    }
}

// The gradient of a grouped 3x3 kernel from x and dy (batch, FRAMES, BINS, CHANNELS), of every 16 channels with
// themselves: partial sums (batch, bin tiles, CHANNELS / 16, 9, 16 in, 16 out), to be summed over the first two axes.
//
// A program has TILE_BINS bins of TILE_CHANNELS channels of an utterance and takes 16 frames after the other, copying
// the next while it multiplies. Each of its 8 warps has 16 channels and STRIP bins. Frames are what products sum
// over.

constexpr int THREADS = 256, TILE_FRAMES = 16, FRAME_TILES = (FRAMES + TILE_FRAMES - 1) / TILE_FRAMES;
constexpr int BLOCKS = TILE_CHANNELS / 16, STRIPS = THREADS / LANES / BLOCKS;
constexpr int STRIP = (TILE_BINS + STRIPS - 1) / STRIPS;
constexpr int X_PITCH = (TILE_BINS + 2) * TILE_CHANNELS + 8, DY_PITCH = TILE_BINS * TILE_CHANNELS + 8;
constexpr int STAGE = (TILE_FRAMES + 2) * X_PITCH + TILE_FRAMES * DY_PITCH;

template <int ROWS, int TILE_WIDTH, int PITCH>
DEVICE void copy_tile(bf16* to, const bf16* from, int frame0, int bin0, int channel0) {
    constexpr int CHUNKS = TILE_WIDTH * TILE_CHANNELS / 8;
#pragma unroll 4
    for (int i = threadIdx.x; i < ROWS * CHUNKS; i += THREADS) {
        const int row = i / CHUNKS, column = i % CHUNKS * 8;
        const int frame = frame0 + row, bin = bin0 + column / TILE_CHANNELS;
        const bool valid = (u32)frame < (u32)FRAMES && (u32)bin < (u32)BINS;
        const int at = (frame * BINS + bin) * CHANNELS + channel0 + column % TILE_CHANNELS;
        copy_async(to + row * PITCH + column, from + (valid ? at : 0), valid);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) grouped_kernel_gradient(
    const bf16* x, const bf16* dy, float* partial) {
    const int bin_tile = blockIdx.y / (CHANNELS / TILE_CHANNELS), bin0 = bin_tile * TILE_BINS;
    const int channel0 = blockIdx.y % (CHANNELS / TILE_CHANNELS) * TILE_CHANNELS;
    const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    const int block = warp / STRIPS, strip = warp % STRIPS, first = strip * STRIP;

    float sums[9][2][4];
#pragma unroll
    for (int i = 0; i < 72; i++) sums[i >> 3][i >> 2 & 1][i & 3] = 0.0f;

    x += (long long)blockIdx.x * FRAMES * BINS * CHANNELS;
    dy += (long long)blockIdx.x * FRAMES * BINS * CHANNELS;
    auto copy = [&](int tile, int stage) {
        const int frame0 = tile * TILE_FRAMES;
        bf16* to = (bf16*)shared_memory + stage * STAGE;
        copy_tile<TILE_FRAMES + 2, TILE_BINS + 2, X_PITCH>(to, x, frame0 - 1, bin0 - 1, channel0);
        to += (TILE_FRAMES + 2) * X_PITCH;
        copy_tile<TILE_FRAMES, TILE_BINS, DY_PITCH>(to, dy, frame0, bin0, channel0);
    };

    // Matrices of x are read transposed, channels by frames; those of dy as they are summed over, frames by channels.
    const int x_row = ((lane >> 4 << 3) + (lane & 7)) * X_PITCH + (lane & 8) + block * 16;
    const int dy_row = (lane & 15) * DY_PITCH + (lane >> 4 << 3) + block * 16;

    copy(0, 0);
    end_of_copies();
    for (int tile = 0; tile < FRAME_TILES; tile++) {
        const int stage = tile & 1;
        if (tile + 1 < FRAME_TILES) copy(tile + 1, stage ^ 1);
        end_of_copies();
        wait_for_copies<1>();
        __syncthreads();
        const bf16* x_rows = (const bf16*)shared_memory + stage * STAGE + x_row;
        const bf16* dy_rows = (const bf16*)shared_memory + stage * STAGE + (TILE_FRAMES + 2) * X_PITCH + dy_row;

        u32 around[3][4];  // dy of the bins before, at and after that of x, in turn
#pragma unroll
        for (int i = -1; i <= STRIP; i++) {
            if (i + 1 < STRIP && first + i + 1 < TILE_BINS)
                load_matrices_transposed(around[(i + 1) % 3], dy_rows + (first + i + 1) * TILE_CHANNELS);
            if (first + i > TILE_BINS) continue;
#pragma unroll
            for (int time = 0; time < 3; time++) {
                u32 a[4];
                load_matrices_transposed(a, x_rows + time * X_PITCH + (first + i + 1) * TILE_CHANNELS);
#pragma unroll
                for (int freq = 0; freq < 3; freq++) {
                    const int o = i - freq + 1;
                    if (o < 0 || o >= STRIP || first + o >= TILE_BINS) continue;
                    const u32(&b)[4] = around[o < 0 ? 0 : o % 3];
                    multiply_add(sums[time * 3 + freq][0], a, b[0], b[1]);
                    multiply_add(sums[time * 3 + freq][1], a, b[2], b[3]);
                }
            }
        }
        __syncthreads();
    }
    // The sums of all strips, one after the other in shared memory, then their sum.
    constexpr int SIZE = 9 * 16 * 16;
    float* own = (float*)shared_memory + warp * SIZE;
    const int group = lane >> 2, pair = lane & 3;
#pragma unroll
    for (int tap = 0; tap < 9; tap++)
#pragma unroll
        for (int j = 0; j < 2; j++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                own[tap * 256 + (group + (e >> 1) * 8) * 16 + j * 8 + pair * 2 + (e & 1)] = sums[tap][j][e];
    __syncthreads();
    constexpr int BIN_TILES = (BINS + TILE_BINS - 1) / TILE_BINS;
    partial += ((long long)(blockIdx.x * BIN_TILES + bin_tile) * (CHANNELS / 16) + channel0 / 16) * SIZE;
    for (int i = threadIdx.x; i < BLOCKS * SIZE; i += THREADS) {
        const float* from = (const float*)shared_memory + i / SIZE * STRIPS * SIZE + i % SIZE;
        float sum = 0.0f;
#pragma unroll
        for (int s = 0; s < STRIPS; s++) sum += from[s * SIZE];
        partial[i] = sum;
    }
}

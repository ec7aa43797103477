// The gradient of a depthwise kernel of TAPS from x and dy (batch, FRAMES, CHANNELS): of every utterance (batch,
// TAPS, CHANNELS), to be summed.
//
// A program has TILE_CHANNELS channels of an utterance and takes TILE_FRAMES frames after the other; a thread has two
// channels and TAPS_A_THREAD consecutive taps, of which a frame of dy meets as many frames of x, one of them new.

constexpr int PAIRS = TILE_CHANNELS / 2, R = TAPS_A_THREAD, PARTS = (TAPS + R - 1) / R, THREADS = PAIRS * PARTS;
constexpr int ROWS = TILE_FRAMES + PARTS * R - 1, CHUNKS = TILE_CHANNELS / 8;

extern "C" __global__ void __launch_bounds__(THREADS) depthwise_kernel_gradient(
    const bf16* x, const bf16* dy, float* partial) {
    bf16* x_tile = (bf16*)shared_memory;
    bf16* dy_tile = x_tile + ROWS * TILE_CHANNELS;
    const int channel0 = blockIdx.y * TILE_CHANNELS, thread = threadIdx.x;
    const int pair = thread % PAIRS, tap0 = thread / PAIRS * R;
    x += (long long)blockIdx.x * FRAMES * CHANNELS;
    dy += (long long)blockIdx.x * FRAMES * CHANNELS;

    float sums[R][2] = {};
    for (int frame0 = 0; frame0 < FRAMES; frame0 += TILE_FRAMES) {
        __syncthreads();
        for (int i = thread; i < (ROWS + TILE_FRAMES) * CHUNKS; i += THREADS) {
            const int row = i / CHUNKS, column = channel0 + i % CHUNKS * 8;
            const bool of_x = row < ROWS;
            const int frame = frame0 + (of_x ? row - TAPS / 2 : row - ROWS);
            const bool valid = (u32)frame < (u32)FRAMES;
            copy_async(x_tile + i * 8, (of_x ? x : dy) + (valid ? frame * CHANNELS + column : 0), valid);
        }
        end_of_copies();
        wait_for_copies<0>();
        __syncthreads();

        const u32* in = (const u32*)x_tile + tap0 * PAIRS + pair;
        const u32* out = (const u32*)dy_tile + pair;
        float window[R][2];
#pragma unroll
        for (int r = 0; r < R - 1; r++) window[r][0] = low(in[r * PAIRS]), window[r][1] = high(in[r * PAIRS]);
        // TILE_FRAMES is a multiple of R, so that the places in the window are known.
        for (int start = 0; start < TILE_FRAMES; start += R) {
#pragma unroll
            for (int i = 0; i < R; i++) {
                const u32 next = in[(start + i + R - 1) * PAIRS], d = out[(start + i) * PAIRS];
                window[(i + R - 1) % R][0] = low(next), window[(i + R - 1) % R][1] = high(next);
                const float d0 = low(d), d1 = high(d);
#pragma unroll
                for (int r = 0; r < R; r++) {
                    sums[r][0] += window[(i + r) % R][0] * d0;
                    sums[r][1] += window[(i + r) % R][1] * d1;
                }
            }
        }
    }
#pragma unroll
    for (int r = 0; r < R; r++) {
        if (tap0 + r >= TAPS) continue;
        float* to = partial + ((long long)blockIdx.x * TAPS + tap0 + r) * CHANNELS + channel0 + 2 * pair;
        to[0] = sums[r][0], to[1] = sums[r][1];
    }
}

// A depthwise convolution over time of x (batch, FRAMES, CHANNELS), an odd number of TAPS, zero padding; where
// ACTIVATED is 1, gelu(conv + shift) of it.
//
// A thread does FRAMES_A_THREAD consecutive frames of two channels: a frame it has loaded serves all taps. A program
// has TILE_CHANNELS channels and STRIPS threads for each two of them.

constexpr int PAIRS = TILE_CHANNELS / 2, THREADS = PAIRS * STRIPS, R = FRAMES_A_THREAD;
constexpr int TILE_FRAMES = STRIPS * R, ROWS = TILE_FRAMES + TAPS - 1, CHUNK = TILE_CHANNELS % 8 ? 4 : 8;
constexpr int CHUNKS = TILE_CHANNELS / CHUNK;
constexpr int FRAME_TILES = (FRAMES + TILE_FRAMES - 1) / TILE_FRAMES;

extern "C" __global__ void __launch_bounds__(THREADS) depthwise_conv1d(
    const bf16* x,
#if MASKED
    const int* mask,
#endif
    const float* kernel,
#if ACTIVATED
    const float* shift,
#endif
    bf16* out) {
    float2* taps = (float2*)shared_memory;
    u32* tile = (u32*)(shared_memory + TAPS * TILE_CHANNELS * 4);
    const int utterance = blockIdx.x / FRAME_TILES, frame0 = blockIdx.x % FRAME_TILES * TILE_FRAMES;
    const int channel0 = blockIdx.y * TILE_CHANNELS, thread = threadIdx.x;
    x += (long long)utterance * FRAMES * CHANNELS;
    out += (long long)utterance * FRAMES * CHANNELS;

    for (int i = thread; i < ROWS * CHUNKS; i += THREADS) {
        int row = i / CHUNKS, column = i % CHUNKS * CHUNK, frame = frame0 + row - TAPS / 2;
        bool valid = frame >= 0 && frame < FRAMES;
#if MASKED
        valid = valid && mask[utterance * FRAMES + frame];
#endif
        const bf16* from = valid ? x + frame * CHANNELS + channel0 + column : x;
        copy_async<2 * CHUNK>((bf16*)tile + row * TILE_CHANNELS + column, from, valid);
    }
    for (int i = thread; i < TAPS * TILE_CHANNELS / 4; i += THREADS) {
        int tap = i / (TILE_CHANNELS / 4), column = i % (TILE_CHANNELS / 4) * 4;
        copy_async((float*)taps + tap * TILE_CHANNELS + column, kernel + tap * CHANNELS + channel0 + column, true);
    }
    end_of_copies();
    wait_for_copies<0>();
    __syncthreads();

    const int pair = thread % PAIRS, first = thread / PAIRS * R;
#if ACTIVATED
    const float start[2] = {shift[channel0 + 2 * pair], shift[channel0 + 2 * pair + 1]};
#else
    const float start[2] = {0.0f, 0.0f};
#endif
    float sums[R][2], window[R][2];
    const u32* in = tile + first * PAIRS + pair;
#pragma unroll
    for (int r = 0; r < R; r++) {
        sums[r][0] = start[0], sums[r][1] = start[1];
        u32 v = in[r * PAIRS];
        window[r][0] = low(v), window[r][1] = high(v);
    }
#pragma unroll
    for (int tap = 0; tap < TAPS; tap++) {
        float2 w = taps[tap * PAIRS + pair];
#pragma unroll
        for (int r = 0; r < R; r++) {
            sums[r][0] += w.x * window[(tap + r) % R][0];
            sums[r][1] += w.y * window[(tap + r) % R][1];
        }
        if (tap + 1 < TAPS) {
            u32 v = in[(tap + R) * PAIRS];
            window[tap % R][0] = low(v), window[tap % R][1] = high(v);
        }
    }
    const int channel = channel0 + 2 * pair;
#pragma unroll
    for (int r = 0; r < R; r++) {
        const int frame = frame0 + first + r;
        if (frame >= FRAMES) break;
#if ACTIVATED
        sums[r][0] = gelu(sums[r][0]), sums[r][1] = gelu(sums[r][1]);
#endif
        *(u32*)(out + frame * CHANNELS + channel) = packed(sums[r][0], sums[r][1]);
    }
}

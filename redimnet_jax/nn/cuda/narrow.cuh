// Some frames of a map (batch, frames, BINS_, CHANNELS_) in the shared memory of a program of WARPS_ warps, for
// convolutions and pointwise products.
//
// A bin is a position of PITCH channels, and a frame has one more, of zeros, before its bins: the neighbours of a
// position in frequency are the next ones, in time those WIDTH away. Channels are filled up with zeros to COLUMNS_.
template <int WARPS_, int BINS_, int CHANNELS_, int COLUMNS_ = (CHANNELS_ + 7) / 8 * 8>
struct Positions {
    static constexpr int THREADS = WARPS_ * LANES, WIDTH = BINS_ + 1, BIN_TILES = (BINS_ + 15) / 16;
    static constexpr int BLOCKS = COLUMNS_ / 8;
    // An odd number of 16 bytes, so that neighbours lie in different banks.
    static constexpr int PITCH = (BLOCKS | 1) * 8;
    // Beyond the last frame: what a tile of bins reads there, in its first place zeros.
    static constexpr int BEYOND = BIN_TILES * 16 + 1 - BINS_;
    static constexpr int VECTOR = CHANNELS_ % 8 == 0 ? 8 : CHANNELS_ % 4 == 0 ? 4 : 2, VECTORS = CHANNELS_ / VECTOR;

    static constexpr DEVICE int size(int frames) { return (frames * WIDTH + BEYOND) * PITCH; }

    struct __align__(2 * VECTOR) Vector { u32 pairs[VECTOR / 2]; };

    // Vector i of the bins of all frames.
    static DEVICE bf16* vector(bf16* tile, int i) {
        const int bins = i / VECTORS, position = bins / BINS_ * WIDTH + bins % BINS_ + 1;
        return tile + position * PITCH + i % VECTORS * VECTOR;
    }

    // FRAMES_ frames of the utterance `x` from `first`; zeros where `counts` says that a frame does not count.
    template <int FRAMES_, class Counts>
    static DEVICE void load(bf16* tile, const bf16* x, int first, Counts counts) {
        const int thread = threadIdx.x;
#pragma unroll 4
        for (int i = thread; i < FRAMES_ * BINS_ * VECTORS; i += THREADS) {
            const bool valid = counts(first + i / (BINS_ * VECTORS));
            copy_async<2 * VECTOR>(vector(tile, i), x + (valid ? first * BINS_ * CHANNELS_ + i * VECTOR : 0), valid);
        }
        end_of_copies();
        for (int i = thread; i < (FRAMES_ + 1) * (COLUMNS_ / 2); i += THREADS)
            *(u32*)(tile + i / (COLUMNS_ / 2) * WIDTH * PITCH + i % (COLUMNS_ / 2) * 2) = 0;
        if constexpr (COLUMNS_ > CHANNELS_) {
            constexpr int FILL = (COLUMNS_ - CHANNELS_) / 2;
            for (int i = thread; i < FRAMES_ * WIDTH * FILL; i += THREADS)
                *(u32*)(tile + i / FILL * PITCH + CHANNELS_ + i % FILL * 2) = 0;
        }
        wait_for_copies<0>();
        __syncthreads();
    }

    // Of FRAMES_ frames from `first` those that the utterance `to` of ALL_ frames has.
    template <int FRAMES_, int ALL_>
    static DEVICE void store(bf16* to, bf16* tile, int first) {
#pragma unroll 4
        for (int i = threadIdx.x; i < FRAMES_ * BINS_ * VECTORS; i += THREADS) {
            const int at = first * BINS_ * CHANNELS_ + i * VECTOR;
            if (at >= ALL_ * BINS_ * CHANNELS_) break;
            *(Vector*)(to + at) = *(const Vector*)vector(tile, i);
        }
    }
};

// Frame i of `to` from frames i, i + 1 and i + 2 of `from`, its edges left out. A product takes 16 positions and 8
// channels: every 8 output channels have STEPS_ x 8 inputs. `taps_of(block, step, tap)` is the lane's part of a tap's
// matrix, as mma.m16n8k8 takes it; `finish(pair, a, b)` packs the sums of a pair of channels.
template <class From, class To, int N_FRAMES, int STRIP_, int STEPS_, class TapsOf, class Finish>
DEVICE void convolve(const bf16* from, bf16* to, TapsOf taps_of, Finish finish) {
    constexpr int BIN_TILES = To::BIN_TILES, N_STRIPS = (N_FRAMES + STRIP_ - 1) / STRIP_;
    constexpr int WARPS_ = To::THREADS / LANES, UNITS = BIN_TILES * N_STRIPS, PAIRS = (UNITS + 1) / 2;
    constexpr int TASKS = (To::BLOCKS * PAIRS + WARPS_ - 1) / WARPS_;
    const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES, group = lane >> 2, pair = lane & 3;
    for (int task = warp * TASKS; task < (warp + 1) * TASKS && task < To::BLOCKS * PAIRS; task++) {
        const int block = task / PAIRS, first = task % PAIRS * 2;
        // A lane gives the address of a position of the first or the second of two units, each 16 bins of a strip.
        const int own = first + (lane >> 4) < UNITS ? first + (lane >> 4) : first, frame0 = own / BIN_TILES * STRIP_;
        const bf16* at = from + (own % BIN_TILES * 16 + (lane & 15)) * From::PITCH + block * STEPS_ * 8;
        float sums[STRIP_][2][4] = {};
#pragma unroll 1
        for (int step = 0; step < STEPS_; step++) {
            u32 w[9];
#pragma unroll
            for (int tap = 0; tap < 9; tap++) w[tap] = taps_of(block, step, tap);
            u32 a[2][3][4];
            auto load_frame = [&](int i) {
                const int frame = frame0 + i < N_FRAMES + 1 ? frame0 + i : N_FRAMES + 1;
#pragma unroll
                for (int freq = 0; freq < 3; freq++)
                    load_matrices(a[i & 1][freq], at + (frame * From::WIDTH + freq) * From::PITCH + step * 8);
            };
            load_frame(0);
#pragma unroll
            for (int i = 0; i < STRIP_ + 2; i++) {
                if (i < STRIP_ + 1) load_frame(i + 1);
#pragma unroll
                for (int freq = 0; freq < 3; freq++)
#pragma unroll
                    for (int time = 0; time < 3; time++) {
                        const int o = i - time;
                        if (o < 0 || o >= STRIP_) continue;
#pragma unroll
                        for (int unit = 0; unit < 2; unit++)
                            multiply_add(sums[o][unit], a[i & 1][freq][2 * unit], a[i & 1][freq][2 * unit + 1],
                                         w[time * 3 + freq]);
                    }
            }
        }
#pragma unroll
        for (int o = 0; o < STRIP_; o++)
#pragma unroll
            for (int unit = 0; unit < 2; unit++) {
                const int frame = (first + unit) / BIN_TILES * STRIP_ + o;
                const int bin = (first + unit) % BIN_TILES * 16 + group;
                const float(&s)[4] = sums[o][unit];
                bf16* place = to + (frame * To::WIDTH + bin + 1) * To::PITCH + block * 8 + pair * 2;
                if (frame >= N_FRAMES) continue;
                if (bin < To::WIDTH - 1) *(u32*)place = finish(block * 4 + pair, s[0], s[1]);
                if (bin + 8 < To::WIDTH - 1) *(u32*)(place + 8 * To::PITCH) = finish(block * 4 + pair, s[2], s[3]);
            }
    }
}

// `finish` of the pointwise product and `bias` of COUNT positions, M tiles of 16 at a time; `to` may be `from`. It
// packs the sums of a pair of channels, and is told whether `inside` says that the position counts. `kernel` is in the
// order in which the lanes of a warp take it.
template <class From, class To, int COUNT, int M, class Inside, class Finish>
DEVICE void mix(const bf16* from, bf16* to, const uint2* kernel, const float* bias, Inside inside, Finish finish) {
    constexpr int TASKS = (COUNT + 16 * M - 1) / (16 * M), K = (From::BLOCKS + 1) / 2;
    const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES, group = lane >> 2, pair = lane & 3;
    for (int task = warp; task < TASKS; task += From::THREADS / LANES) {
        u32 a[M][K][4];
        bool counts[M][2];
#pragma unroll
        for (int m = 0; m < M; m++) {
            const int first = (task * M + m) * 16, position = first + (lane & 15);
            const bf16* at = from + (position < COUNT ? position : COUNT - 1) * From::PITCH;
#pragma unroll
            for (int k = 0; k < K; k++)
                load_matrices(a[m][k], at + k * 16 + (2 * k + 1 < From::BLOCKS ? lane >> 4 << 3 : 0));
            counts[m][0] = inside(first + group), counts[m][1] = inside(first + group + 8);
        }
        __syncwarp();
#pragma unroll
        for (int n = 0; n < To::BLOCKS; n++) {
            const float2 start = ((const float2*)bias)[n * 4 + pair];
            float sums[M][4];
#pragma unroll
            for (int m = 0; m < M; m++) sums[m][0] = sums[m][2] = start.x, sums[m][1] = sums[m][3] = start.y;
#pragma unroll
            for (int k = 0; k < K; k++) {
                const uint2 b = kernel[(k * To::BLOCKS + n) * LANES + lane];
#pragma unroll
                for (int m = 0; m < M; m++)
                    if (2 * k + 1 < From::BLOCKS) multiply_add(sums[m], a[m][k], b.x, b.y);
                    else multiply_add(sums[m], a[m][k][0], a[m][k][1], b.x);
            }
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const int position = (task * M + m) * 16 + group + 8 * half;
                    if (position < COUNT)
                        *(u32*)(to + position * To::PITCH + n * 8 + pair * 2) =
                            finish(counts[m][half], n * 4 + pair, sums[m][2 * half], sums[m][2 * half + 1]);
                }
        }
    }
}

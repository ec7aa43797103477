// gelu(conv(x) + shift) kernel + bias of x (batch, FRAMES, BINS, CHANNELS) with OUT channels, a grouped 3x3 convolution
// under zero padding of which every 8 output channels have INPUT_BLOCKS x 8 inputs.
//
// A program takes TILE_FRAMES frames of an utterance with all bins and channels. taps (9, OUT / 8, INPUT_BLOCKS) and
// kernel (OUT / 16, OUT / 8) are in the order in which the lanes of a warp take them, rounded up; vectors (2, OUT
// rounded up to 8) are shift and bias.

using Out = Positions<WARPS, BINS, OUT>;
using In = Positions<WARPS, BINS, CHANNELS, 8 * INPUT_BLOCKS * Out::BLOCKS>;
constexpr int FRAME_TILES = (FRAMES + TILE_FRAMES - 1) / TILE_FRAMES;

extern "C" __global__ void __launch_bounds__(WARPS* LANES, 16 / WARPS) squeeze(
    const bf16* x,
#if MASKED
    const int* mask,
#endif
    const u32* taps, const uint2* kernel, const float* vectors, bf16* out) {
    bf16 *in_tile = (bf16*)shared_memory, *out_tile = in_tile + In::size(TILE_FRAMES + 2);
    const int utterance = blockIdx.x / FRAME_TILES, frame0 = blockIdx.x % FRAME_TILES * TILE_FRAMES;
    const int lane = threadIdx.x % LANES;
    x += (long long)utterance * FRAMES * BINS * CHANNELS;
    out += (long long)utterance * FRAMES * BINS * OUT;

    In::load<TILE_FRAMES + 2>(in_tile, x, frame0 - 1, [&](int frame) {
        bool valid = (u32)frame < (u32)FRAMES;
#if MASKED
        valid = valid && mask[utterance * FRAMES + frame];
#endif
        return valid;
    });
    convolve<In, Out, TILE_FRAMES, STRIP, INPUT_BLOCKS>(
        in_tile, out_tile,
        [&](int block, int step, int tap) {
            return taps[((tap * Out::BLOCKS + block) * INPUT_BLOCKS + step) * LANES + lane];
        },
        [&](int pair, float a, float b) {
            const float2 shift = ((const float2*)vectors)[pair];
            return packed(gelu(a + shift.x), gelu(b + shift.y));
        });
    __syncthreads();
    mix<Out, Out, TILE_FRAMES * Out::WIDTH, TILES_A_WARP>(
        out_tile, out_tile, kernel, vectors + 8 * Out::BLOCKS, [](int) { return true; },
        [](bool, int, float a, float b) { return packed(a, b); });
    __syncthreads();
    Out::store<TILE_FRAMES, FRAMES>(out, out_tile, frame0);
}

// x kernel + bias of x (batch, FRAMES, BINS, CHANNELS) with OUT channels, numbers of channels of which a matrix product
// elsewhere makes copies.
//
// A program takes TILE_FRAMES frames of an utterance with all bins and channels. kernel (CHANNELS / 16, OUT / 8) is in
// the order in which the lanes of a warp take it, bias (OUT), each rounded up.

using In = Positions<WARPS, BINS, CHANNELS>;
using Out = Positions<WARPS, BINS, OUT>;
constexpr int FRAME_TILES = (FRAMES + TILE_FRAMES - 1) / TILE_FRAMES;

extern "C" __global__ void __launch_bounds__(WARPS* LANES, PROGRAMS)
    pointwise(const bf16* x, const uint2* kernel, const float* bias, bf16* out) {
    bf16 *in_tile = (bf16*)shared_memory, *out_tile = in_tile + In::size(TILE_FRAMES);
    const int utterance = blockIdx.x / FRAME_TILES, frame0 = blockIdx.x % FRAME_TILES * TILE_FRAMES;
    x += (long long)utterance * FRAMES * BINS * CHANNELS;
    out += (long long)utterance * FRAMES * BINS * OUT;

    In::load<TILE_FRAMES>(in_tile, x, frame0, [](int frame) { return frame < FRAMES; });
    mix<In, Out, TILE_FRAMES * In::WIDTH, TILES_A_WARP>(
        in_tile, out_tile, kernel, bias, [](int) { return true; },
        [](bool, int, float a, float b) { return packed(a, b); });
    __syncthreads();
    Out::store<TILE_FRAMES, FRAMES>(out, out_tile, frame0);
}

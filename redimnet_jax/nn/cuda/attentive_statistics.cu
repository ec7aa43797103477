// Mean and standard deviation over time of x (batch, FRAMES, CHANNELS) under softmax over time of logits, of the same
// shape: (batch, 2 CHANNELS), float32. The variance is at least FLOOR, which is 1e-7.
//
// A program has 64 channels of an utterance, a lane two of them, and its warps share the frames.

constexpr int WARPS = 8, THREADS = WARPS * LANES, PAIRS = CHANNELS / 2;
constexpr float FLOOR = 1e-7f;

extern "C" __global__ void __launch_bounds__(THREADS) attentive_statistics(
    const u32* x, const u32* logits,
#if MASKED
    const int* mask,
#endif
    float* out) {
    float2* shared = (float2*)shared_memory;
    const int utterance = blockIdx.x, lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
    const int pair = blockIdx.y * LANES + lane;
    const bool exists = pair < PAIRS;
    x += (long long)utterance * FRAMES * PAIRS + pair;
    logits += (long long)utterance * FRAMES * PAIRS + pair;
    auto counts = [&](int frame) {
#if MASKED
        return exists && mask[utterance * FRAMES + frame];
#else
        return exists;
#endif
    };

    float2 top = {-3e38f, -3e38f};
#pragma unroll 8
    for (int frame = warp; frame < FRAMES; frame += WARPS)
        if (counts(frame)) {
            const u32 v = logits[frame * PAIRS];
            top.x = fmaxf(top.x, low(v)), top.y = fmaxf(top.y, high(v));
        }
    shared[threadIdx.x] = top;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < WARPS; i++) {
        const float2 other = shared[i * LANES + lane];
        top.x = fmaxf(top.x, other.x), top.y = fmaxf(top.y, other.y);
    }
    __syncthreads();

    float2 sums[3] = {};  // of the weights, of them times x and times its square
    auto add = [&](float2 weight, float2 v) {
        sums[0].x += weight.x, sums[1].x += weight.x * v.x, sums[2].x += weight.x * v.x * v.x;
        sums[0].y += weight.y, sums[1].y += weight.y * v.y, sums[2].y += weight.y * v.y * v.y;
    };
#pragma unroll 8
    for (int frame = warp; frame < FRAMES; frame += WARPS)
        if (counts(frame)) {
            const u32 l = logits[frame * PAIRS], v = x[frame * PAIRS];
            const float2 weight = {power_of_two((low(l) - top.x) * LOG2_E), power_of_two((high(l) - top.y) * LOG2_E)};
            add(weight, {low(v), high(v)});
        }
#pragma unroll
    for (int i = 0; i < 3; i++) shared[i * THREADS + threadIdx.x] = sums[i];
    __syncthreads();
    if (warp || !exists) return;
    for (int other = 1; other < WARPS; other++)
#pragma unroll
        for (int i = 0; i < 3; i++) {
            const float2 s = shared[i * THREADS + other * LANES + lane];
            sums[i].x += s.x, sums[i].y += s.y;
        }
    const float2 mean = {sums[1].x / sums[0].x, sums[1].y / sums[0].y};
    const float2 var = {sums[2].x / sums[0].x - mean.x * mean.x, sums[2].y / sums[0].y - mean.y * mean.y};
    float* to = out + (long long)utterance * 2 * CHANNELS + 2 * pair;
    to[0] = mean.x, to[1] = mean.y;
    to[CHANNELS] = sqrtf(fmaxf(var.x, FLOOR)), to[CHANNELS + 1] = sqrtf(fmaxf(var.y, FLOOR));
}

// softmax(q k^T / sqrt(SIZE)) v of one head of an utterance, of q, k, v (batch, FRAMES, CHANNELS); and the logarithm,
// to base 2, of what every query's weights are divided by: (batch, HEADS, FRAMES).
//
// Each of WARPS warps takes 16 queries after the other, and 64 keys at a time, with the largest logit so far
// (FlashAttention, arXiv 2205.14135).

constexpr int KEYS = 64;
using Tile = Head<FRAMES, CHANNELS, SIZE>;

extern "C" __global__ void __launch_bounds__(WARPS* LANES) attention(
    const bf16* q, const bf16* k, const bf16* v,
#if MASKED
    const int* mask,
#endif
    bf16* out, float* log_sums) {
    bf16* q_tile = (bf16*)shared_memory;
    bf16 *k_tile = q_tile + Tile::ROWS * Tile::PITCH, *v_tile = k_tile + Tile::ROWS * Tile::PITCH;
    float* bias = (float*)(v_tile + Tile::ROWS * Tile::PITCH);
    const int utterance = blockIdx.x / HEADS, head = blockIdx.x % HEADS;
    const long long start = (long long)utterance * FRAMES * CHANNELS + head * SIZE;
    Tile::load(q_tile, q + start);
    Tile::load(k_tile, k + start);
    Tile::load(v_tile, v + start);
    for (int key = threadIdx.x; key < Tile::ROWS; key += blockDim.x) {
        bool counts = key < FRAMES;
#if MASKED
        counts = counts && mask[utterance * FRAMES + key];
#endif
        bias[key] = counts ? 0.0f : NO_KEY;
    }
    end_of_copies();
    wait_for_copies<0>();
    __syncthreads();

    const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES, group = lane >> 2, pair = lane & 3;
    const float scale = rsqrtf((float)SIZE) * LOG2_E;
    for (int row = warp * 16; row < Tile::ROWS; row += WARPS * 16) {
        u32 queries[Tile::STEPS][4];
#pragma unroll
        for (int i = 0; i < Tile::STEPS; i++) load_matrices(queries[i], Tile::by_rows(q_tile, row) + i * 16);
        float sums[2 * Tile::STEPS][4] = {}, top[2] = {NO_KEY, NO_KEY}, total[2] = {};
        for (int key0 = 0; key0 < Tile::ROWS; key0 += KEYS) {
            float logits[KEYS / 8][4] = {};
#pragma unroll
            for (int part = 0; part < KEYS / 16; part++) {
                if (key0 + part * 16 >= Tile::ROWS) continue;
#pragma unroll
                for (int i = 0; i < Tile::STEPS; i++) {
                    u32 b[4];
                    load_matrices(b, Tile::by_columns(k_tile, key0 + part * 16) + i * 16);
                    multiply_add(logits[2 * part], queries[i], b[0], b[1]);
                    multiply_add(logits[2 * part + 1], queries[i], b[2], b[3]);
                }
            }
            float highest[2] = {top[0], top[1]};
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const int key = key0 + n * 8 + pair * 2 + (e & 1);
                    logits[n][e] = logits[n][e] * scale + (key < Tile::ROWS ? bias[key] : NO_KEY);
                    highest[e >> 1] = fmaxf(highest[e >> 1], logits[n][e]);
                }
#pragma unroll
            for (int half = 0; half < 2; half++) {
                highest[half] = fmaxf(highest[half], __shfl_xor_sync(~0u, highest[half], 1));
                highest[half] = fmaxf(highest[half], __shfl_xor_sync(~0u, highest[half], 2));
                const float factor = power_of_two(top[half] - highest[half]);
                top[half] = highest[half], total[half] *= factor;
#pragma unroll
                for (int n = 0; n < 2 * Tile::STEPS; n++)
                    sums[n][2 * half] *= factor, sums[n][2 * half + 1] *= factor;
            }
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    logits[n][e] = power_of_two(logits[n][e] - top[e >> 1]);
                    total[e >> 1] += logits[n][e];
                }
#pragma unroll
            for (int part = 0; part < KEYS / 16; part++) {
                if (key0 + part * 16 >= Tile::ROWS) continue;
                const float(&left)[4] = logits[2 * part], (&right)[4] = logits[2 * part + 1];
                const u32 weights[4] = {packed(left[0], left[1]), packed(left[2], left[3]),
                                        packed(right[0], right[1]), packed(right[2], right[3])};
#pragma unroll
                for (int i = 0; i < Tile::STEPS; i++) {
                    u32 b[4];
                    load_matrices_transposed(b, Tile::by_rows(v_tile, key0 + part * 16) + i * 16);
                    multiply_add(sums[2 * i], weights, b[0], b[1]);
                    multiply_add(sums[2 * i + 1], weights, b[2], b[3]);
                }
            }
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            total[half] += __shfl_xor_sync(~0u, total[half], 1);
            total[half] += __shfl_xor_sync(~0u, total[half], 2);
            const int query = row + group + 8 * half;
            if (pair == 0 && query < FRAMES) log_sums[blockIdx.x * FRAMES + query] = top[half] + log2f(total[half]);
        }
        Tile::store(out + start, row, sums, reciprocal(total[0]), reciprocal(total[1]));
    }
}

// The gradients of attention.cu in q, k and v, from its output and the logarithms it gives: the weights are computed
// again, of 16 keys with all queries for the gradients in k and v, of 16 queries with all keys for that in q.

using Tile = Head<FRAMES, CHANNELS, SIZE>;

// p and p (dp - delta), packed as left operands of 16 x 16.
DEVICE void pack(u32 (&to)[4], const float (&left)[4], const float (&right)[4]) {
    to[0] = packed(left[0], left[1]), to[1] = packed(left[2], left[3]);
    to[2] = packed(right[0], right[1]), to[3] = packed(right[2], right[3]);
}

// sums += a times the 16 rows of `tile` from `row`.
DEVICE void add_rows(float (&sums)[2 * Tile::STEPS][4], const u32 (&a)[4], const bf16* tile, int row) {
#pragma unroll
    for (int i = 0; i < Tile::STEPS; i++) {
        u32 b[4];
        load_matrices_transposed(b, Tile::by_rows(tile, row) + i * 16);
        multiply_add(sums[2 * i], a, b[0], b[1]);
        multiply_add(sums[2 * i + 1], a, b[2], b[3]);
    }
}

// Of 16 rows `a` and the 16 rows of `tile` from `row`, all products.
DEVICE void products(float (&sums)[2][4], const u32 (&a)[Tile::STEPS][4], const bf16* tile, int row) {
#pragma unroll
    for (int i = 0; i < 8; i++) sums[i >> 2][i & 3] = 0.0f;
#pragma unroll
    for (int i = 0; i < Tile::STEPS; i++) {
        u32 b[4];
        load_matrices(b, Tile::by_columns(tile, row) + i * 16);
        multiply_add(sums[0], a[i], b[0], b[1]);
        multiply_add(sums[1], a[i], b[2], b[3]);
    }
}

extern "C" __global__ void __launch_bounds__(WARPS* LANES, Tile::COLUMNS <= 48 ? 2 : 1) attention_gradient(
    const bf16* q, const bf16* k, const bf16* v, const bf16* out, const float* log_sums, const bf16* dout,
#if MASKED
    const int* mask,
#endif
    bf16* dq, bf16* dk, bf16* dv) {
    constexpr int AREA = Tile::ROWS * Tile::PITCH;
    bf16* q_tile = (bf16*)shared_memory;
    bf16 *k_tile = q_tile + AREA, *v_tile = k_tile + AREA, *dout_tile = v_tile + AREA;
    float* bias = (float*)(dout_tile + AREA);
    float *log_sum = bias + Tile::ROWS, *delta = log_sum + Tile::ROWS;
    const int utterance = blockIdx.x / HEADS, head = blockIdx.x % HEADS;
    const long long start = (long long)utterance * FRAMES * CHANNELS + head * SIZE;
    Tile::load(q_tile, q + start);
    Tile::load(k_tile, k + start);
    Tile::load(v_tile, v + start);
    Tile::load(dout_tile, dout + start);
    for (int row = threadIdx.x; row < Tile::ROWS; row += blockDim.x) {
        bool counts = row < FRAMES;
        float sum = 0.0f;
        if (counts && SIZE % 4)
            for (int i = 0; i < SIZE; i++) {
                const long long at = start + row * CHANNELS + i;
                sum += low(out[at]) * low(dout[at]);
            }
        else if (counts)
            for (int i = 0; i < SIZE; i += 4) {
                const uint2 o = *(const uint2*)(out + start + row * CHANNELS + i);
                const uint2 d = *(const uint2*)(dout + start + row * CHANNELS + i);
                sum += low(o.x) * low(d.x) + high(o.x) * high(d.x) + low(o.y) * low(d.y) + high(o.y) * high(d.y);
            }
        delta[row] = sum;
        // Queries that there are not have no weights.
        log_sum[row] = counts ? log_sums[blockIdx.x * FRAMES + row] : -NO_KEY;
#if MASKED
        counts = counts && mask[utterance * FRAMES + row];
#endif
        bias[row] = counts ? 0.0f : NO_KEY;
    }
    end_of_copies();
    wait_for_copies<0>();
    __syncthreads();

    const int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES, group = lane >> 2, pair = lane & 3;
    const float scale = rsqrtf((float)SIZE);
    for (int key = warp * 16; key < Tile::ROWS; key += WARPS * 16) {
        u32 keys[Tile::STEPS][4], values[Tile::STEPS][4], a[4];
#pragma unroll
        for (int i = 0; i < Tile::STEPS; i++) {
            load_matrices(keys[i], Tile::by_rows(k_tile, key) + i * 16);
            load_matrices(values[i], Tile::by_rows(v_tile, key) + i * 16);
        }
        const float key_bias[2] = {bias[key + group], bias[key + group + 8]};
        float dkeys[2 * Tile::STEPS][4] = {}, dvalues[2 * Tile::STEPS][4] = {};
        for (int query = 0; query < Tile::ROWS; query += 16) {
            float p[2][4], dp[2][4];
            products(p, keys, q_tile, query);
            products(dp, values, dout_tile, query);
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const int column = query + n * 8 + pair * 2 + (e & 1);
                    p[n][e] = power_of_two(p[n][e] * (scale * LOG2_E) + key_bias[e >> 1] - log_sum[column]);
                    dp[n][e] = p[n][e] * (dp[n][e] - delta[column]);
                }
            pack(a, p[0], p[1]);
            add_rows(dvalues, a, dout_tile, query);
            pack(a, dp[0], dp[1]);
            add_rows(dkeys, a, q_tile, query);
        }
        Tile::store(dk + start, key, dkeys, scale, scale);
        Tile::store(dv + start, key, dvalues, 1.0f, 1.0f);
    }

    for (int query = warp * 16; query < Tile::ROWS; query += WARPS * 16) {
        u32 queries[Tile::STEPS][4], douts[Tile::STEPS][4], a[4];
#pragma unroll
        for (int i = 0; i < Tile::STEPS; i++) {
            load_matrices(queries[i], Tile::by_rows(q_tile, query) + i * 16);
            load_matrices(douts[i], Tile::by_rows(dout_tile, query) + i * 16);
        }
        const float sum[2] = {log_sum[query + group], log_sum[query + group + 8]};
        const float d[2] = {delta[query + group], delta[query + group + 8]};
        float dqueries[2 * Tile::STEPS][4] = {};
        for (int key = 0; key < Tile::ROWS; key += 16) {
            float p[2][4], dp[2][4];
            products(p, queries, k_tile, key);
            products(dp, douts, v_tile, key);
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const int column = key + n * 8 + pair * 2 + (e & 1);
                    const float weight =
                        power_of_two(p[n][e] * (scale * LOG2_E) + bias[column] - sum[e >> 1]);
                    dp[n][e] = weight * (dp[n][e] - d[e >> 1]);
                }
            pack(a, dp[0], dp[1]);
            add_rows(dqueries, a, k_tile, key);
        }
        Tile::store(dq + start, query, dqueries, scale, scale);
    }
}

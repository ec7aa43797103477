// The gradients of x + gelu((y - mean) gain + offset) kernel + bias, from y and dout (batch, MAP_ROWS, CHANNELS): the
// map dnormalised, the gradient of what the GELU is taken of, and sums over rows that make the others, of every program
// and row of warps: dkernel (batch, parts x ROW_WARPS, CHANNELS out, CHANNELS in), and sums (batch, parts x ROW_WARPS, 3,
// CHANNELS) of dnormalised, of dnormalised (y - mean) and of dout.
//
// A program takes every so many-th tile of TILE_ROWS rows of an utterance, copying the next while it multiplies. A warp
// has 16 of the input channels, and 16 rows at a time: dout kernel^T, to which it does what the GELU asks for, and the
// product of dout^T with the GELU, whose registers one product hands to the other. kernel^T (CHANNELS / 16,
// CHANNELS / 8) is in the order in which the lanes of a warp take it; where KERNEL_HELD is 1 they hold it, else it is in
// shared memory.

constexpr int COLUMN_WARPS = CHANNELS / 16, THREADS = COLUMN_WARPS * ROW_WARPS * LANES, BLOCKS = CHANNELS / 16;
constexpr int TILES = (MAP_ROWS + TILE_ROWS - 1) / TILE_ROWS;
// 16 bytes more than a row has let the rows of a matrix lie in different banks.
constexpr int PITCH = CHANNELS + 8, CHUNKS = CHANNELS / 8, TILE = TILE_ROWS * PITCH;

extern "C" __global__ void __launch_bounds__(THREADS, MIN_PROGRAMS) mix_channels_gradient(
    const bf16* y, const bf16* dout, const float* mean, const float* gain, const float* offset, const uint2* kernel,
    bf16* dnormalised, float* dkernel, float* sums) {
    const int thread = threadIdx.x, warp = thread / LANES, lane = thread % LANES;
    const int row_warp = warp / COLUMN_WARPS, block = warp % COLUMN_WARPS;
    const int group = lane >> 2, pair = lane & 3;

    const long long before = (long long)blockIdx.x * MAP_ROWS * CHANNELS;
    y += before, dout += before, dnormalised += before;

    auto copy = [&](int tile, int stage) {
        const int first = tile * TILE_ROWS * CHANNELS, rows = MAP_ROWS - tile * TILE_ROWS;
        bf16* to = (bf16*)shared_memory + stage * 2 * TILE;
#pragma unroll 4
        for (int i = thread; i < TILE_ROWS * CHUNKS; i += THREADS) {
            const int at = i / CHUNKS * PITCH + i % CHUNKS * 8;
            const bool valid = i < rows * CHUNKS;
            copy_async(to + at, y + first + (valid ? i * 8 : 0), valid);
            copy_async(to + TILE + at, dout + first + (valid ? i * 8 : 0), valid);
        }
    };
    copy(blockIdx.y, 0);
#if !KERNEL_HELD
    uint2* kernel_tile = (uint2*)((bf16*)shared_memory + 4 * TILE);
    for (int i = thread; i < CHANNELS * CHANNELS / 8; i += THREADS) copy_async(kernel_tile + 2 * i, kernel + 2 * i, true);
#endif
    end_of_copies();

    // Of this warp's channels: 8 j + 2 pair and the next.
    float means[2][2], gains[2][2], offsets[2][2];
#pragma unroll
    for (int j = 0; j < 2; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const int channel = block * 16 + j * 8 + pair * 2 + e;
            means[j][e] = mean[channel], gains[j][e] = gain[channel], offsets[j][e] = offset[channel];
        }
#if KERNEL_HELD
    u32 held[BLOCKS][2][2];
#pragma unroll
    for (int k = 0; k < BLOCKS; k++)
#pragma unroll
        for (int j = 0; j < 2; j++) {
            uint2 v = kernel[(k * (CHANNELS / 8) + block * 2 + j) * LANES + lane];
            held[k][j][0] = v.x, held[k][j][1] = v.y;
        }
#endif
    float products[BLOCKS][2][4], of_dn[2][2] = {}, of_dn_y[2][2] = {}, of_dout[2][2] = {};
#pragma unroll
    for (int i = 0; i < BLOCKS * 8; i++) products[i >> 3][i >> 2 & 1][i & 3] = 0.0f;

    const int as_rows = (lane & 15) * PITCH + (lane >> 4 << 3);
    const int as_columns = ((lane >> 4 << 3) + (lane & 7)) * PITCH + (lane & 8);

    int stage = 0;
    for (int tile = blockIdx.y; tile < TILES; tile += PARTS, stage ^= 1) {
        if (tile + PARTS < TILES) copy(tile + PARTS, stage ^ 1);
        end_of_copies();
        wait_for_copies<1>();
        __syncthreads();
        bf16* y_tile = (bf16*)shared_memory + stage * 2 * TILE;
        const bf16* dout_tile = y_tile + TILE;
#pragma unroll 1
        for (int row0 = row_warp * 16; row0 < TILE_ROWS; row0 += ROW_WARPS * 16) {
            float d[2][4] = {};
#pragma unroll
            for (int k = 0; k < BLOCKS; k++) {
                u32 a[4];
                load_matrices(a, dout_tile + row0 * PITCH + as_rows + k * 16);
                if (k == block) {
#pragma unroll
                    for (int i = 0; i < 4; i++) of_dout[i >> 1][0] += low(a[i]), of_dout[i >> 1][1] += high(a[i]);
                }
#pragma unroll
                for (int j = 0; j < 2; j++) {
#if KERNEL_HELD
                    multiply_add(d[j], a, held[k][j][0], held[k][j][1]);
#else
                    uint2 v = kernel_tile[(k * (CHANNELS / 8) + block * 2 + j) * LANES + lane];
                    multiply_add(d[j], a, v.x, v.y);
#endif
                }
            }
            u32 activated[2][2];
#pragma unroll
            for (int j = 0; j < 2; j++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    u32* at = (u32*)(y_tile + (row0 + half * 8 + group) * PITCH + block * 16 + j * 8 + pair * 2);
                    const u32 both = *at;
                    float g[2], dn[2];
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        const float centred = (e ? high(both) : low(both)) - means[j][e];
                        float derivative;
                        g[e] = gelu(centred * gains[j][e] + offsets[j][e], derivative);
                        dn[e] = d[j][half * 2 + e] * derivative;
                        of_dn[j][e] += dn[e], of_dn_y[j][e] += dn[e] * centred;
                    }
                    *at = packed(dn[0], dn[1]);
                    // By columns, as a product takes what it sums over.
                    activated[j][half] = transposed(packed(g[0], g[1]));
                }
#pragma unroll
            for (int m = 0; m < BLOCKS; m++) {
                u32 a[4];
                load_matrices_transposed(a, dout_tile + row0 * PITCH + as_columns + m * 16);
#pragma unroll
                for (int j = 0; j < 2; j++) multiply_add(products[m][j], a, activated[j][0], activated[j][1]);
            }
        }
        __syncthreads();
        uint4* to = (uint4*)(dnormalised + tile * TILE_ROWS * CHANNELS);
#pragma unroll 4
        for (int i = thread; i < TILE_ROWS * CHUNKS; i += THREADS)
            if (i < (MAP_ROWS - tile * TILE_ROWS) * CHUNKS)
                to[i] = *(const uint4*)(y_tile + i / CHUNKS * PITCH + i % CHUNKS * 8);
        __syncthreads();
    }

    const int part = (blockIdx.x * PARTS + blockIdx.y) * ROW_WARPS + row_warp;
    dkernel += (long long)part * CHANNELS * CHANNELS + block * 16 + pair * 2;
    sums += part * 3 * CHANNELS + block * 16 + pair * 2;
#pragma unroll
    for (int m = 0; m < BLOCKS; m++)
#pragma unroll
        for (int j = 0; j < 2; j++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                *(float2*)(dkernel + (m * 16 + half * 8 + group) * CHANNELS + j * 8) =
                    float2{products[m][j][half * 2], products[m][j][half * 2 + 1]};
#pragma unroll
    for (int j = 0; j < 2; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            float totals[3] = {of_dn[j][e], of_dn_y[j][e], of_dout[j][e]};
#pragma unroll
            for (int i = 0; i < 3; i++) {
                for (int lanes = 4; lanes < LANES; lanes *= 2) totals[i] += __shfl_xor_sync(~0u, totals[i], lanes);
                if (group == 0) sums[i * CHANNELS + j * 8 + e] = totals[i];
            }
        }
}

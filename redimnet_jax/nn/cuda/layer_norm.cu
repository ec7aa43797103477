// Every row of CHANNELS normalised, scaled and shifted. LANES_A_ROW lanes share a row, four channels each at a time.

constexpr int THREADS = 256, QUADS = CHANNELS / 4, STEPS = (QUADS + LANES_A_ROW - 1) / LANES_A_ROW;

DEVICE float row_sum(float x) {
#pragma unroll
    for (int lanes = 1; lanes < LANES_A_ROW; lanes *= 2) x += __shfl_xor_sync(~0u, x, lanes);
    return x;
}

extern "C" __global__ void __launch_bounds__(THREADS) layer_norm(
    const uint2* x, const float* eps, const float4* scale, const float4* shift, uint2* out) {
    const long long row = (long long)blockIdx.x * (THREADS / LANES_A_ROW) + threadIdx.x / LANES_A_ROW;
    const int first = threadIdx.x % LANES_A_ROW;
    float v[STEPS][4], sum = 0.0f, squares = 0.0f;
#pragma unroll
    for (int i = 0; i < STEPS; i++) {
        const int quad = first + i * LANES_A_ROW;
        uint2 both = {0, 0};
        if (row < MAP_ROWS && quad < QUADS) both = x[row * QUADS + quad];
        v[i][0] = low(both.x), v[i][1] = high(both.x), v[i][2] = low(both.y), v[i][3] = high(both.y);
#pragma unroll
        for (int e = 0; e < 4; e++) sum += v[i][e];
    }
    const float mean = row_sum(sum) * (1.0f / CHANNELS);
#pragma unroll
    for (int i = 0; i < STEPS; i++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            v[i][e] = first + i * LANES_A_ROW < QUADS ? v[i][e] - mean : 0.0f;
            squares += v[i][e] * v[i][e];
        }
    const float inverse = rsqrtf(row_sum(squares) * (1.0f / CHANNELS) + *eps);
#pragma unroll
    for (int i = 0; i < STEPS; i++) {
        const int quad = first + i * LANES_A_ROW;
        if (row >= MAP_ROWS || quad >= QUADS) continue;
        const float4 gain = scale[quad], offset = shift[quad];
        uint2 both;
        both.x = packed(v[i][0] * inverse * gain.x + offset.x, v[i][1] * inverse * gain.y + offset.y);
        both.y = packed(v[i][2] * inverse * gain.z + offset.z, v[i][3] * inverse * gain.w + offset.w);
        out[row * QUADS + quad] = both;
    }
}

// What the two kernels of attention share: a head's part of a map (batch, frames, channels) in shared memory, frames
// and channels filled up with zeros to multiples of 16, rows 16 bytes longer so that they lie in different banks.
template <int FRAMES_, int CHANNELS_, int SIZE_>
struct Head {
    static constexpr int ROWS = (FRAMES_ + 15) / 16 * 16, COLUMNS = (SIZE_ + 15) / 16 * 16, PITCH = COLUMNS + 8;
    static constexpr int STEPS = COLUMNS / 16;

    static DEVICE void load(bf16* to, const bf16* from) {
        // A head of another size may begin at any channel.
        if constexpr (SIZE_ % 4) {
            for (int i = threadIdx.x; i < ROWS * COLUMNS; i += blockDim.x) {
                const int row = i / COLUMNS, column = i % COLUMNS;
                to[row * PITCH + column] = row < FRAMES_ && column < SIZE_ ? from[row * CHANNELS_ + column] : 0;
            }
            return;
        }
        constexpr int CHUNK = SIZE_ % 8 ? 4 : 8, CHUNKS = COLUMNS / CHUNK;
        for (int i = threadIdx.x; i < ROWS * CHUNKS; i += blockDim.x) {
            const int row = i / CHUNKS, column = i % CHUNKS * CHUNK;
            const bool valid = row < FRAMES_ && column < SIZE_;
            copy_async<2 * CHUNK>(to + row * PITCH + column, from + (valid ? row * CHANNELS_ + column : 0), valid);
        }
    }

    // Where a lane reads 16 rows x 16 columns: as a left operand or, summed over the rows, as a right one (by_rows);
    // as a right operand summed over the columns (by_columns).
    static DEVICE const bf16* by_rows(const bf16* tile, int row) {
        const int lane = threadIdx.x % LANES;
        return tile + (row + (lane & 15)) * PITCH + (lane >> 4 << 3);
    }
    static DEVICE const bf16* by_columns(const bf16* tile, int row) {
        const int lane = threadIdx.x % LANES;
        return tile + (row + (lane >> 4 << 3) + (lane & 7)) * PITCH + (lane & 8);
    }

    // 16 rows times `factor` to the map, of the sums that the lanes hold.
    static DEVICE void store(bf16* to, int row, const float (&sums)[2 * STEPS][4], float low_factor,
                             float high_factor) {
        const int lane = threadIdx.x % LANES, group = lane >> 2, pair = lane & 3;
#pragma unroll
        for (int n = 0; n < 2 * STEPS; n++) {
            const int column = n * 8 + pair * 2;
            if (column >= SIZE_) continue;
            if (row + group < FRAMES_)
                store_pair(to + (row + group) * CHANNELS_, column,
                           packed(sums[n][0] * low_factor, sums[n][1] * low_factor));
            if (row + group + 8 < FRAMES_)
                store_pair(to + (row + group + 8) * CHANNELS_, column,
                           packed(sums[n][2] * high_factor, sums[n][3] * high_factor));
        }
    }
    static DEVICE void store_pair(bf16* row, int column, u32 both) {
        if constexpr (SIZE_ % 2) {
            row[column] = (bf16)both;
            if (column + 1 < SIZE_) row[column + 1] = (bf16)(both >> 16);
        } else {
            *(u32*)(row + column) = both;
        }
    }
};

// Added to the logits of keys that do not count.
constexpr float NO_KEY = -1e30f, LOG2_E = 1.44269504f;

// What the kernels use of a GPU, on a CPU, in place of primitives.cuh: the threads of a block are fibers of one thread.
//
// What a GPU leaves open is done in the way that shows a mistake. A warp runs to the next barrier before the others
// start, in one block the first warp first, in the next the last. A copy overwrites its place with NaN at once and
// arrives when its thread waits for it. Shared memory starts as NaN, and has more of it around.
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <utility>

typedef unsigned short bf16;
typedef unsigned int u32;
typedef unsigned char byte;

struct alignas(8) uint2 { u32 x, y; };
struct alignas(16) uint4 { u32 x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };

#define DEVICE inline
#define LANES 32
#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)

namespace emulated {
constexpr int MAX_THREADS = 1024, STACK = 1 << 16, MAX_COPIES = 512, EDGE = 4096, NAN_BYTE = 0xff;

struct Copy { byte* to; const void* from; bool valid; int group, bytes; };

struct Thread {
    ucontext_t start;
    jmp_buf at;
    bool started, done, waits;
    void* operands;  // of the operation that its warp does together
    Copy copies[MAX_COPIES];
    int n_copies, groups;
};

struct Warp { int arrived; const void* operation; };

static Thread* threads = (Thread*)calloc(MAX_THREADS, sizeof(Thread));
static byte* stacks = (byte*)malloc((size_t)MAX_THREADS * STACK);
static Warp warps[MAX_THREADS / LANES];
static int n_threads, n_done, n_at_barrier, direction, shared_bytes, n_arrays;
static byte** arrays;
static const long long* sizes;
static jmp_buf end_of_block;
static char message[200];
struct Index { u32 x, y, z; };
}  // namespace emulated

static emulated::Index threadIdx, blockIdx, blockDim, gridDim;
static byte* shared_memory;

namespace emulated {
[[noreturn]] inline void fail(const char* what) {
    snprintf(message, sizeof message, "block %u, %u, thread %u: %s", blockIdx.x, blockIdx.y, threadIdx.x, what);
    _longjmp(end_of_block, 1);
}

[[noreturn]] inline void go_on(int thread) {
    threadIdx.x = thread;
    Thread& t = threads[thread];
    if (t.started) _longjmp(t.at, 1);
    t.started = true;
    setcontext(&t.start);
    abort();
}

// The next thread that can run, of this warp first.
[[noreturn]] inline void run_another() {
    if (n_done == n_threads) _longjmp(end_of_block, 1);
    const int warp = threadIdx.x / LANES * LANES, n_warps = (n_threads + LANES - 1) / LANES;
    for (int i = 0; i < n_warps; i++) {
        const int first = (warp / LANES + n_warps + direction * i) % n_warps * LANES;
        for (int lane = 0; lane < LANES && first + lane < n_threads; lane++)
            if (!threads[first + lane].done && !threads[first + lane].waits) go_on(first + lane);
    }
    fail("it waits for threads that do not come");
}

__attribute__((noinline)) static void wait() {
    threads[threadIdx.x].waits = true;
    if (!_setjmp(threads[threadIdx.x].at)) run_another();
}

// `compute` of the operands of all lanes, by the last lane to come.
template <class T, class F>
void together(T& own, F compute) {
    static const char operation = 0;
    const int first = threadIdx.x / LANES * LANES;
    Warp& warp = warps[first / LANES];
    if (warp.arrived && warp.operation != &operation) fail("the lanes of its warp do different things");
    warp.operation = &operation;
    threads[threadIdx.x].operands = &own;
    if (++warp.arrived < LANES) return wait();
    T* all[LANES];
    for (int lane = 0; lane < LANES; lane++) {
        all[lane] = (T*)threads[first + lane].operands;
        threads[first + lane].waits = false;
    }
    warp.arrived = 0;
    compute(all);
}

inline void check_shared(const void* p, int bytes, int alignment) {
    const long long at = (const byte*)p - shared_memory;
    if (at < 0 || at + bytes > shared_bytes) fail("beyond shared memory");
    if (at % alignment) fail("shared memory off its alignment");
}

inline void check_global(const void* p, int bytes) {
    for (int i = 0; i < n_arrays; i++)
        if ((const byte*)p >= arrays[i] && (const byte*)p + bytes <= arrays[i] + sizes[i]) {
            if (((const byte*)p - arrays[i]) % bytes) fail("an array off its alignment");
            return;
        }
    fail("a copy from beyond all arrays");
}

inline void release_barrier() {
    if (n_at_barrier + n_done < n_threads) return;
    n_at_barrier = 0;
    for (int i = 0; i < n_threads; i++) threads[i].waits = false;
}

inline float from_bits(u32 bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

inline u32 bf16_bits(float x) {
    u32 bits;
    memcpy(&bits, &x, 4);
    return x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
}  // namespace emulated

// Not those of <math.h>, which takes longer to read than a kernel.
DEVICE float fminf(float x, float y) { return __builtin_fminf(x, y); }
DEVICE float fmaxf(float x, float y) { return __builtin_fmaxf(x, y); }
DEVICE float log2f(float x) { return __builtin_log2f(x); }
DEVICE float sqrtf(float x) { return __builtin_sqrtf(x); }
DEVICE float rsqrtf(float x) { return 1.0f / __builtin_sqrtf(x); }

inline void __syncthreads() {
    emulated::n_at_barrier++;
    if (emulated::n_at_barrier + emulated::n_done < emulated::n_threads) return emulated::wait();
    emulated::release_barrier();
}

inline void __syncwarp(u32 = ~0u) {
    int nothing;
    emulated::together(nothing, [](int**) {});
}

template <class T>
T from_lane(T x, int source) {
    struct Operands { T x, y; int source; } own{x, x, source};
    emulated::together(own, [](Operands** all) {
        for (int lane = 0; lane < LANES; lane++) all[lane]->y = all[all[lane]->source]->x;
    });
    return own.y;
}

template <class T> T __shfl_sync(u32, T x, int lane) { return from_lane(x, lane % LANES); }
template <class T> T __shfl_xor_sync(u32, T x, int mask) { return from_lane(x, threadIdx.x % LANES ^ mask); }
template <class T> T __shfl_down_sync(u32, T x, int by) {
    const int lane = threadIdx.x % LANES;
    return from_lane(x, lane + by < LANES ? lane + by : lane);
}

template <int BYTES = 16>
DEVICE void copy_async(void* to, const void* from, bool valid) {
    emulated::check_shared(to, BYTES, BYTES);
    if (valid) emulated::check_global(from, BYTES);
    auto& t = emulated::threads[threadIdx.x];
    if (t.n_copies == emulated::MAX_COPIES) emulated::fail("more copies than the emulation keeps");
    memset(to, emulated::NAN_BYTE, BYTES);
    t.copies[t.n_copies++] = {(byte*)to, from, valid, t.groups, BYTES};
}

DEVICE void end_of_copies() { emulated::threads[threadIdx.x].groups++; }

template <int PENDING>
DEVICE void wait_for_copies() {
    auto& t = emulated::threads[threadIdx.x];
    int left = 0;
    for (int i = 0; i < t.n_copies; i++) {
        const auto copy = t.copies[i];
        if (copy.group >= t.groups - PENDING) t.copies[left++] = copy;
        else if (copy.valid) memcpy(copy.to, copy.from, copy.bytes);
        else memset(copy.to, 0, copy.bytes);
    }
    t.n_copies = left;
}

template <bool TRANSPOSED>
void load(u32 (&m)[4], const void* row) {
    struct Operands { u32* m; const bf16* row; } own{m, (const bf16*)row};
    emulated::check_shared(row, 16, 16);
    emulated::together(own, [](Operands** all) {
        for (int i = 0; i < 4; i++)
            for (int lane = 0; lane < LANES; lane++) {
                const int a = lane / 4, b = lane % 4 * 2;
                auto element = [&](int row, int column) -> u32 { return all[8 * i + row]->row[column]; };
                all[lane]->m[i] = TRANSPOSED ? element(b, a) | element(b + 1, a) << 16
                                             : element(a, b) | element(a, b + 1) << 16;
            }
    });
}

DEVICE void load_matrices(u32 (&m)[4], const void* row) { load<false>(m, row); }
DEVICE void load_matrices_transposed(u32 (&m)[4], const void* row) { load<true>(m, row); }

DEVICE u32 transposed(u32 m) {
    struct Operands { u32 m, t; } own{m, 0};
    emulated::together(own, [](Operands** all) {
        for (int lane = 0; lane < LANES; lane++) {
            const int row = lane / 4, column = lane % 4 * 2;
            // Of the row and column that this lane has after: in the matrix before, a column and a row.
            auto element = [&](int i, int j) { return all[4 * i + j / 2]->m >> j % 2 * 16 & 0xffff; };
            all[lane]->t = element(column, row) | element(column + 1, row) << 16;
        }
    });
    return own.t;
}

DEVICE float low(u32 both) { return emulated::from_bits(both << 16); }
DEVICE float high(u32 both) { return emulated::from_bits(both & 0xffff0000u); }
DEVICE u32 packed(float low, float high) { return emulated::bf16_bits(low) | emulated::bf16_bits(high) << 16; }
DEVICE u32 added(u32 a, u32 b) { return packed(low(a) + low(b), high(a) + high(b)); }
DEVICE u32 positive(u32 both) { return packed(fmaxf(low(both), 0.0f), fmaxf(high(both), 0.0f)); }
DEVICE float power_of_two(float x) { return __builtin_exp2f(x); }
DEVICE float reciprocal(float x) { return 1.0f / x; }

DEVICE void multiply_add(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    struct Operands { float* sum; const u32* a; u32 b[2]; } own{sum, a, {b0, b1}};
    emulated::together(own, [](Operands** all) {
        float a[16][16], b[16][8];
        for (int lane = 0; lane < LANES; lane++) {
            const int group = lane / 4, pair = lane % 4 * 2;
            for (int i = 0; i < 4; i++) {
                float* to = &a[group + i % 2 * 8][pair + i / 2 * 8];
                to[0] = low(all[lane]->a[i]), to[1] = high(all[lane]->a[i]);
            }
            for (int i = 0; i < 2; i++) {
                b[pair + i * 8][group] = low(all[lane]->b[i]);
                b[pair + i * 8 + 1][group] = high(all[lane]->b[i]);
            }
        }
        for (int lane = 0; lane < LANES; lane++)
            for (int i = 0; i < 4; i++) {
                const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
                for (int k = 0; k < 16; k++) all[lane]->sum[i] += a[row][k] * b[k][column];
            }
    });
}

DEVICE void multiply_add(float (&sum)[4], u32 a0, u32 a1, u32 b) {
    const u32 a[4] = {a0, a1, 0, 0};
    multiply_add(sum, a, b, 0);
}

namespace emulated {
static void (*body)();

static void start_of_thread() {
    body();
    threads[threadIdx.x].done = true;
    n_done++;
    if (n_at_barrier) release_barrier();
    run_another();
}

static bool edge_is_whole(const byte* edge) {
    for (int i = 0; i < EDGE; i++)
        if (edge[i] != NAN_BYTE) return false;
    return true;
}

// Null, or what went wrong.
inline const char* run(const int* launch) {
    n_threads = launch[2], shared_bytes = launch[3], message[0] = 0;
    blockDim = {(u32)n_threads, 1, 1}, gridDim = {(u32)launch[0], (u32)launch[1], 1};
    const size_t size = 2 * EDGE + shared_bytes;
    byte* memory = (byte*)aligned_alloc(128, (size + 127) / 128 * 128);
    shared_memory = memory + EDGE;
    for (int block = 0; block < launch[0] * launch[1] && !message[0]; block++) {
        blockIdx = {(u32)(block % launch[0]), (u32)(block / launch[0]), 0};
        direction = block % 2 ? -1 : 1;
        n_done = n_at_barrier = 0;
        memset(memory, NAN_BYTE, size);
        memset(warps, 0, sizeof warps);
        for (int i = 0; i < n_threads; i++) {
            Thread& t = threads[i];
            t.started = t.done = t.waits = false, t.n_copies = t.groups = 0;
            getcontext(&t.start);
            t.start.uc_stack.ss_sp = stacks + (size_t)i * STACK, t.start.uc_stack.ss_size = STACK;
            makecontext(&t.start, start_of_thread, 0);
        }
        if (!_setjmp(end_of_block)) go_on(direction > 0 ? 0 : (n_threads - 1) / LANES * LANES);
        if (!message[0] && !(edge_is_whole(memory) && edge_is_whole(shared_memory + shared_bytes)))
            snprintf(message, sizeof message, "it wrote beyond shared memory");
    }
    free(memory);
    return message[0] ? message : nullptr;
}

template <class... P, size_t... I>
void call_with_arrays(void (*kernel)(P...), std::index_sequence<I...>) {
    static void (*kept)(P...);
    kept = kernel;
    body = [] { kept((P)arrays[I]...); };
}

template <class... P>
const char* run(void (*kernel)(P...), int n, byte** at, const long long* of, const int* launch) {
    if (sizeof...(P) != n) return "the kernel has another number of arguments";
    n_arrays = n, arrays = at, sizes = of;
    call_with_arrays(kernel, std::index_sequence_for<P...>());
    return run(launch);
}
}  // namespace emulated

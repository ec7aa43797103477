// What the kernels use of a GPU from compute capability 8.0 on. A bfloat16 is kept as its 16 bits.
typedef unsigned short bf16;
typedef unsigned int u32;

#define DEVICE __device__ __forceinline__
#define LANES 32

extern __shared__ __align__(128) unsigned char shared_memory[];

DEVICE u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// 16 (or 8, or 4) bytes from global to shared memory; zeros where they are not `valid`.
template <int BYTES = 16>
DEVICE void copy_async(void* to, const void* from, bool valid) {
    if (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
                     "r"(valid ? 16 : 0));
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(shared_address(to)), "l"(from),
                     "r"(valid ? BYTES : 0), "n"(BYTES));
}

// Ends a group of copies.
DEVICE void end_of_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until all groups but the last `PENDING` are there; other threads see them after the next barrier.
template <int PENDING>
DEVICE void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Four 8 x 8 matrices of bfloat16; lane 8 i + r gives the address of row r of matrix i.
DEVICE void load_matrices(u32 (&m)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(shared_address(row)));
}

DEVICE void load_matrices_transposed(u32 (&m)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(shared_address(row)));
}

// The transpose of an 8 x 8 matrix, of which lane 4 i + j holds columns 2 j and 2 j + 1 of row i.
DEVICE u32 transposed(u32 m) {
    u32 t;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(t) : "r"(m));
    return t;
}

// sum (16 x 8) += a (16 x 16) b (16 x 8), in the layout of mma.m16n8k16.
DEVICE void multiply_add(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The same of a (16 x 8), its rows 0 to 7 and 8 to 15, and b (8 x 8), in the layout of mma.m16n8k8.
DEVICE void multiply_add(float (&sum)[4], u32 a0, u32 a1, u32 b) {
    asm(
        "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a0), "r"(a1), "r"(b));
}

DEVICE u32 packed(float low, float high) {
    u32 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

DEVICE float low(u32 both) { return __uint_as_float(both << 16); }
DEVICE float high(u32 both) { return __uint_as_float(both & 0xffff0000u); }

// Both sums of two bfloat16.
DEVICE u32 added(u32 a, u32 b) {
    u32 sum;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(0x3f803f80u), "r"(b));
    return sum;
}

// Both of two bfloat16, or 0 where they are less.
DEVICE u32 positive(u32 both) {
    u32 top;
    asm("max.bf16x2 %0, %1, %2;" : "=r"(top) : "r"(both), "r"(0));
    return top;
}

DEVICE float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

DEVICE float reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// x times the normal distribution's cumulative function, to 3e-5, where a bfloat16 near 1 has 2e-3: the function is
// the logistic one of an odd polynomial, here of degree 5, least squares with the largest errors weighted up.
DEVICE float normal_cdf(float x, float square) {
    const float minus_log2_e = -1.44269504f;
    square = fminf(square, 50.0f);  // beyond it the polynomial turns, and the result is 0 or 1
    float p = minus_log2_e * -7.03035022e-4f;
    p = p * square + minus_log2_e * 7.40113016e-2f;
    p = p * square + minus_log2_e * 1.59501576f;
    return reciprocal(1.0f + power_of_two(x * p));
}

DEVICE float gelu(float x) { return x * normal_cdf(x, x * x); }

// The same, and its derivative: that function plus x times the distribution's density.
DEVICE float gelu(float x, float& derivative) {
    const float half_log2_e = 0.72134752f, log2_of_factor = -1.32574806f;  // of 1 / sqrt(2 pi)
    const float square = x * x, cdf = normal_cdf(x, square);
    derivative = cdf + x * power_of_two(log2_of_factor - half_log2_e * square);
    return x * cdf;
}

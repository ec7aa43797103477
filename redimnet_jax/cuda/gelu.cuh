// x times the normal distribution's cumulative function, to 3e-5, where a bfloat16 near 1 has 2e-3: the function is
// the logistic one of an odd polynomial, here of degree 5, least squares with the largest errors weighted up.
DEVICE float gelu(float x) {
    const float minus_log2_e = -1.44269504f;
    float square = fminf(x * x, 50.0f);  // beyond it the polynomial turns, and the result is x or 0
    float p = minus_log2_e * -7.03035022e-4f;
    p = p * square + minus_log2_e * 7.40113016e-2f;
    p = p * square + minus_log2_e * 1.59501576f;
    return x * reciprocal(1.0f + power_of_two(x * p));
}

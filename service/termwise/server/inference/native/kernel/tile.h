/* The innermost product, for one kind of number; included once a kind, with these defined:

   TILE(name)           the name of a function for the kind
   SUMS                 vector of sums
   START(offset)        their first value
   DOT(sums, unit, b)   sums plus the products of one unit, broadcast, with a vector of weights
   VALUE(sums, scale)   sums as floats; `scale` is that of the row

   All bounds are constants once inlined, so that the compiler keeps `sums` in registers. */

INLINE void TILE(multiply)(const int rows, const int vectors, const uint32_t *units, int64_t stride,
                           const uint32_t *panel, int64_t count, const int32_t *offset, SUMS sums[ROWS][VECTORS]) {
#pragma GCC unroll 8
    for (int row = 0; row < rows; row++) {
#pragma GCC unroll 3
        for (int v = 0; v < vectors; v++) sums[row][v] = START(offset + v * LANES);
    }
    for (int64_t unit = 0; unit < count; unit++, panel += PANEL) {
        SUMS weights[VECTORS];
#pragma GCC unroll 3
        for (int v = 0; v < vectors; v++) weights[v] = WEIGHTS(panel + v * LANES);
#pragma GCC unroll 8
        for (int row = 0; row < rows; row++) {
            const SUMS one = BROADCAST(units[row * stride + unit]);
#pragma GCC unroll 3
            for (int v = 0; v < vectors; v++) sums[row][v] = DOT(sums[row][v], one, weights[v]);
        }
    }
}

/* Raise `best` [PANEL] to the largest value of each output over the rows. */
INLINE void TILE(raise)(const int rows, const int vectors, const uint32_t *units, int64_t stride, const uint32_t *panel,
                        int64_t count, const int32_t *offset, const float *scale, float *best, int64_t step) {
    (void)step;
    SUMS sums[ROWS][VECTORS];
    TILE(multiply)(rows, vectors, units, stride, panel, count, offset, sums);
#pragma GCC unroll 3
    for (int v = 0; v < vectors; v++) {
        vector most = load(best + v * LANES);
#pragma GCC unroll 8
        for (int row = 0; row < rows; row++) most = larger(VALUE(sums[row][v], scale + row), most);
        store(best + v * LANES, most);
    }
}

/* Write the values of each row, `step` floats apart. */
INLINE void TILE(write)(const int rows, const int vectors, const uint32_t *units, int64_t stride, const uint32_t *panel,
                        int64_t count, const int32_t *offset, const float *scale, float *out, int64_t step) {
    SUMS sums[ROWS][VECTORS];
    TILE(multiply)(rows, vectors, units, stride, panel, count, offset, sums);
#pragma GCC unroll 8
    for (int row = 0; row < rows; row++) {
#pragma GCC unroll 3
        for (int v = 0; v < vectors; v++) store(out + row * step + v * LANES, VALUE(sums[row][v], scale + row));
    }
}

#define ARGUMENTS                                                                                                  \
    const uint32_t *units, int64_t stride, const uint32_t *panel, int64_t count, const int32_t *offset,             \
        const float *scale, float *out, int64_t step
#define ONE(what, rows, vectors)                                                                                   \
    static void TILE(what##_##rows##_##vectors)(ARGUMENTS) {                                                       \
        TILE(what)(rows, vectors, units, stride, panel, count, offset, scale, out, step);                          \
    }
#define THREE(what, rows) ONE(what, rows, 1) ONE(what, rows, 2) ONE(what, rows, 3)
#define NAMES(what, rows) {TILE(what##_##rows##_1), TILE(what##_##rows##_2), TILE(what##_##rows##_3)}
#if ROWS == 8
#define ALL(what)                                                                                                  \
    THREE(what, 1) THREE(what, 2) THREE(what, 3) THREE(what, 4)                                                    \
    THREE(what, 5) THREE(what, 6) THREE(what, 7) THREE(what, 8)                                                    \
    static const tile TILE(what##_tiles)[ROWS][VECTORS] = {                                                        \
        NAMES(what, 1), NAMES(what, 2), NAMES(what, 3), NAMES(what, 4),                                            \
        NAMES(what, 5), NAMES(what, 6), NAMES(what, 7), NAMES(what, 8)};
#else
#define ALL(what)                                                                                                  \
    THREE(what, 1) THREE(what, 2) THREE(what, 3) THREE(what, 4)                                                    \
    static const tile TILE(what##_tiles)[ROWS][VECTORS] = {NAMES(what, 1), NAMES(what, 2), NAMES(what, 3),         \
                                                           NAMES(what, 4)};
#endif

ALL(raise)
ALL(write)

#undef ARGUMENTS
#undef ONE
#undef THREE
#undef NAMES
#undef ALL
#undef TILE
#undef SUMS
#undef START
#undef WEIGHTS
#undef BROADCAST
#undef DOT
#undef VALUE

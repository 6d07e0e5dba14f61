/* Products of packed matrices with rows: pooled over texts, or written out. */
#include <math.h>

#include "kernel.h"
#include "team.h"
#include "vector.h"

typedef void (*tile)(const uint32_t *units, int64_t stride, const uint32_t *panel, int64_t count, const int32_t *offset,
                     const float *scale, float *out, int64_t step);

#define TILE(name) name##_float32
#define SUMS vector
#define START(offset) all(0)
#define WEIGHTS(from) load((const float *)(from))
#define BROADCAST(unit) all(*(const float *)&(unit))
#define DOT(sums, one, weights) fused(one, weights, sums)
#define VALUE(sums, scale) (sums)
#include "tile.h"

#ifdef __AVX512BF16__
#define HAS_BFLOAT16 1
#define TILE(name) name##_bfloat16
#define SUMS vector
#define START(offset) all(0)
#define WEIGHTS(from) load((const float *)(from))
#define BROADCAST(unit) _mm512_castsi512_ps(_mm512_set1_epi32((int)(unit)))
#define DOT(sums, one, weights) _mm512_dpbf16_ps(sums, (__m512bh)(one), (__m512bh)(weights))
#define VALUE(sums, scale) (sums)
#include "tile.h"
#else
#define HAS_BFLOAT16 0
#endif

#ifdef __AVX512VNNI__
#define HAS_INT8 1
/* Not __m512i, a vector of long long: the compiler would keep a copy of each sum in memory (gcc 12). */
typedef int32_t integers __attribute__((vector_size(64)));
#define TILE(name) name##_int8
#define SUMS integers
#define START(offset) ((integers)_mm512_loadu_si512(offset))
#define WEIGHTS(from) ((integers)_mm512_loadu_si512(from))
#define BROADCAST(unit) ((integers)_mm512_set1_epi32((int)(unit)))
#define DOT(sums, one, weights) ((integers)_mm512_dpbusd_epi32((__m512i)(sums), (__m512i)(one), (__m512i)(weights)))
#define VALUE(sums, scale) (_mm512_cvtepi32_ps((__m512i)(sums)) * all(*(scale)))
#include "tile.h"
#else
#define HAS_INT8 0
#endif

static tile raising_tile(int32_t kind, int64_t rows, int64_t vectors) {
#if HAS_BFLOAT16
    if (kind == BFLOAT16) return raise_tiles_bfloat16[rows - 1][vectors - 1];
#endif
#if HAS_INT8
    if (kind == INT8) return raise_tiles_int8[rows - 1][vectors - 1];
#endif
    return raise_tiles_float32[rows - 1][vectors - 1];
}

static tile writing_tile(int32_t kind, int64_t rows, int64_t vectors) {
#if HAS_BFLOAT16
    if (kind == BFLOAT16) return write_tiles_bfloat16[rows - 1][vectors - 1];
#endif
#if HAS_INT8
    if (kind == INT8) return write_tiles_int8[rows - 1][vectors - 1];
#endif
    return write_tiles_float32[rows - 1][vectors - 1];
}

/* Convert rows of floats to units of a matrix's kind, `matrix->units` a row, the last one filled up with zeros. */
static void cast(const float *from, int64_t width, int64_t rows, const termwise_matrix *matrix, uint32_t *units,
                 float *scale) {
    for (int64_t row = 0; row < rows; row++, from += width, units += matrix->units) {
        units[matrix->units - 1] = 0;
#if HAS_BFLOAT16
        if (matrix->kind == BFLOAT16) {
            uint16_t *to = (uint16_t *)units;
            for (int64_t i = 0; i < width; i += LANES) {
                const __m256i half = (__m256i)_mm512_cvtneps_pbh(load_some(from + i, width - i));
                if (width - i >= LANES) {
                    _mm256_storeu_si256((__m256i *)(to + i), half);
                } else {
                    memcpy(to + i, &half, (size_t)(width - i) * sizeof(uint16_t));
                }
            }
            continue;
        }
#endif
#if HAS_INT8
        if (matrix->kind == INT8) {
            vector most = all(0);
            for (int64_t i = 0; i < width; i += LANES) most = larger(_mm512_abs_ps(load_some(from + i, width - i)), most);
            const float reach = largest(most);
            const float inverse = reach > 0 ? 127 / reach : 0;
            scale[row] = reach / 127;
            uint8_t *to = (uint8_t *)units;
            for (int64_t i = 0; i < width; i += LANES) {
                const __m512i whole = _mm512_cvtps_epi32(load_some(from + i, width - i) * all(inverse));
                const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_add_epi32(whole, _mm512_set1_epi32(128)));
                if (width - i >= LANES) {
                    _mm_storeu_si128((__m128i *)(to + i), bytes);
                } else {
                    memcpy(to + i, &bytes, (size_t)(width - i));
                }
            }
            continue;
        }
#endif
        memcpy(units, from, (size_t)width * sizeof(float));
    }
}

/* For panels `first` to `last`, write the largest value of each output over the rows of each text, bias included.

   Text t has rows starts[t] to starts[t + 1], at least one. `out` is [texts][stride]. The values of single rows stay in
   registers. A panel is multiplied with all rows before the next one is read: it stays in the first cache. */
static void pool(const termwise_matrix *matrix, const termwise_rows *rows, const int64_t *starts, int64_t texts,
                 int64_t first, int64_t last, float *out, int64_t stride) {
    for (int64_t number = first; number < last; number++) {
        const uint32_t *panel = matrix->weight + number * matrix->units * PANEL;
        const int64_t column = number * PANEL;
        const int64_t width = matrix->outputs - column < PANEL ? matrix->outputs - column : PANEL;
        const int64_t vectors = (width + LANES - 1) / LANES;
        const int32_t *offset = matrix->kind == INT8 ? matrix->offset + column : NULL;
        for (int64_t text = 0; text < texts; text++) {
            float best[PANEL];
            for (int v = 0; v < VECTORS; v++) store(best + v * LANES, all(-INFINITY));
            const int64_t count = starts[text + 1] - starts[text];
            const int64_t tiles = (count + ROWS - 1) / ROWS;
            int64_t row = starts[text];
            for (int64_t each = 0; each < tiles; each++) {
                /* Tiles of nearly equal height: a last one of a single row would wait for its own sums. */
                const int64_t height = count / tiles + (each < count % tiles);
                raising_tile(matrix->kind, height, vectors)(rows->units + row * rows->stride, rows->stride, panel,
                                                            matrix->units, offset, rows->scale + row, best, 0);
                row += height;
            }
            for (int64_t v = 0; v < vectors; v++) {
                vector value = load(best + v * LANES);
                if (matrix->kind == INT8) value = value * load(matrix->scale + column + v * LANES);
                value = value + load(matrix->bias + column + v * LANES);
                store_some(out + text * stride + column + v * LANES, value, width - v * LANES);
            }
        }
    }
}

/* Where a product goes: floats or bfloat16, `stride` numbers a row, in place of what is there or added to it. */
typedef struct {
    float *floats;
    uint16_t *halves; /* used where floats is NULL */
    int64_t stride;
    int add;
} target;

INLINE void store_halves(uint16_t *to, vector x, int64_t count) {
#if HAS_BFLOAT16
    const __m256i half = (__m256i)_mm512_cvtneps_pbh(x);
    if (count >= LANES) {
        _mm256_storeu_si256((__m256i *)to, half);
    } else if (count > 0) {
        memcpy(to, &half, (size_t)count * sizeof(uint16_t));
    }
#else
    (void)to, (void)x, (void)count;
#endif
}

INLINE vector activate(vector x, int32_t activation) {
    if (activation == GELU) return gelu(x);
    if (activation == GELU_TANH) return gelu_tanh(x);
    return activation == RELU ? larger(x, all(0)) : x;
}

/* Multiply some rows with some panels of a matrix. */
static void multiply_part(const termwise_matrix *matrix, const termwise_rows *rows, share of_rows, share of_panels,
                          const target *to) {
    const int64_t count = of_rows.last - of_rows.first;
    for (int64_t number = of_panels.first; number < of_panels.last; number++) {
        const uint32_t *panel = matrix->weight + number * matrix->units * PANEL;
        const int64_t column = number * PANEL;
        const int64_t outputs = matrix->outputs - column < PANEL ? matrix->outputs - column : PANEL;
        const int64_t vectors = (outputs + LANES - 1) / LANES;
        const int64_t width = to->add ? outputs : to->stride - column;
        const int32_t *offset = matrix->kind == INT8 ? matrix->offset + column : NULL;
        const int64_t tiles = (count + ROWS - 1) / ROWS;
        int64_t row = of_rows.first;
        for (int64_t each = 0; each < tiles; each++) {
            float values[ROWS * PANEL];
            const int64_t height = count / tiles + (each < count % tiles);
            writing_tile(matrix->kind, height, vectors)(rows->units + row * rows->stride, rows->stride, panel,
                                                        matrix->units, offset, rows->scale + row, values, PANEL);
            for (int64_t v = 0; v < vectors; v++) {
                const int64_t first = column + v * LANES;
                const vector bias = load(matrix->bias + first);
                const vector scale = matrix->kind == INT8 ? load(matrix->scale + first) : all(1);
                for (int64_t i = 0; i < height; i++) {
                    vector value = activate(fused(load(values + i * PANEL + v * LANES), scale, bias),
                                            matrix->activation);
                    if (!to->floats) {
                        store_halves(to->halves + (row + i) * to->stride + first, value, width - v * LANES);
                        continue;
                    }
                    float *place = to->floats + (row + i) * to->stride + first;
                    if (to->add) value = value + load_some(place, width - v * LANES);
                    store_some(place, value, width - v * LANES);
                }
            }
            row += height;
        }
    }
}

/* Multiply `count` rows with a matrix, add its bias, and apply its activation. Missing outputs up to the target's
   stride become zeros, so that the next product may read them. Many rows are shared out among the team, of few ones
   the panels are. All of the rows have to be there; the team has to meet before it reads what this writes. */
static void multiply(const worker *me, const termwise_matrix *matrix, const termwise_rows *rows, int64_t count,
                     const target *to) {
    const int64_t panels = (matrix->outputs + PANEL - 1) / PANEL;
    if (count >= 4 * ROWS * me->of->size) {
        multiply_part(matrix, rows, share_of(me, count), (share){0, panels}, to);
    } else {
        multiply_part(matrix, rows, (share){0, count}, share_of(me, panels), to);
    }
}

/* What the kernel and its caller in Python share. `termwise_model` and what it holds are mirrored in layout.py.

   Every number that is multiplied lives in units of 32 bits: one float32, two bfloat16, or four int8 values. A matrix
   [outputs, inputs] is packed as [panels][units][PANEL] units, a panel being the next PANEL outputs, so that a tile
   reads it from start to end. Missing outputs and inputs are zeros. */
#ifndef TERMWISE_KERNEL_H
#define TERMWISE_KERNEL_H

#include <stddef.h>
#include <stdint.h>

enum kind { FLOAT32, BFLOAT16, INT8, KINDS };
enum activation { NONE, GELU, GELU_TANH, RELU };

typedef struct {
    const uint32_t *weight;
    const float *bias;     /* a float an output, padded to whole panels */
    const int32_t *offset; /* INT8: minus 128 times the sum of an output's weights; rows are stored plus 128 */
    const float *scale;    /* INT8: what an output's weights were divided by */
    int64_t outputs;
    int64_t units;
    int32_t kind;
    int32_t activation;
} termwise_matrix;

typedef struct {
    const float *weight;
    const float *bias;
} termwise_norm;

/* Rows of a product, in the matrix's kind: `stride` units apart. `scale` (INT8): what a row was divided by. */
typedef struct {
    const uint32_t *units;
    const float *scale;
    int64_t stride;
} termwise_rows;

typedef struct {
    termwise_matrix mixed; /* queries, keys and values, one after another */
    termwise_matrix attention;
    termwise_matrix intermediate;
    termwise_matrix output;
    termwise_norm attention_norm;
    termwise_norm output_norm;
} termwise_layer;

typedef struct {
    int64_t embedding; /* width of the embeddings and of the head's rows */
    int64_t hidden;
    int64_t heads;
    int64_t layers;
    int64_t words_kind; /* FLOAT32 or BFLOAT16 */
    int64_t attention_kind;
    int64_t furthest; /* positions; distances lie between 1 - furthest and furthest - 1 */
    float epsilon;
    const void *words;      /* [vocabulary][embedding] */
    const float *positions; /* [positions][embedding] */
    const float *distances; /* what attention adds by distance, [heads][2 * furthest - 1], or NULL */
    const termwise_matrix *project; /* from embedding to hidden, or NULL */
    const termwise_layer *layer;
    termwise_norm embedding_norm;
    termwise_matrix transform;
    termwise_norm head_norm;
    termwise_matrix decoder;
} termwise_model;

/* Texts end to end: `ids` and `places` (rows of the positions) a token; text t has tokens starts[t] to starts[t + 1]. */
typedef struct {
    const int32_t *ids;
    const int32_t *places;
    const int64_t *starts;
    int64_t texts;
    int64_t threads;
} termwise_batch;

/* What one level of instructions offers; see dispatch.c. */
typedef struct {
    const char *name;
    int64_t panel; /* outputs of a panel */
    int64_t kinds; /* bits: 1 << kind */
    void (*cast)(const float *from, int64_t width, int64_t rows, const termwise_matrix *matrix, uint32_t *units,
                 float *scale);
    void (*pool)(const termwise_matrix *matrix, const termwise_rows *rows, const int64_t *starts, int64_t texts,
                 int64_t first, int64_t last, float *out, int64_t stride);
    /* Bytes of scratch memory that `encode` needs. */
    int64_t (*scratch)(const termwise_model *model, const termwise_batch *batch);
    /* Writes the largest logits, [texts][vocabulary]. `scratch` is aligned to 64 bytes. */
    void (*encode)(const termwise_model *model, const termwise_batch *batch, void *scratch, float *out);
} termwise_level;

#endif

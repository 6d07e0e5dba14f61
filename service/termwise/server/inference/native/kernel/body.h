/* Embeddings and layers over packed texts. The sums of a layer's parts, its norms and softmax are float32 always. */
#include "product.h"

/* Tokens that pass through the layers together, or one longer text: what they need stays near the processor, and each
   weight is read once for many tokens. */
#define BLOCK 512

INLINE void normalise(float *row, int64_t width, const termwise_norm *norm, float epsilon) {
    const int64_t whole = width / LANES * LANES;
    vector total = all(0), square = all(0);
    for (int64_t i = 0; i < whole; i += LANES) total = total + load(row + i);
    float mean = sum(total);
    for (int64_t i = whole; i < width; i++) mean += row[i];
    mean /= (float)width;
    for (int64_t i = 0; i < whole; i += LANES) {
        const vector off = load(row + i) - all(mean);
        square = fused(off, off, square);
    }
    float variance = sum(square);
    for (int64_t i = whole; i < width; i++) variance += (row[i] - mean) * (row[i] - mean);
    const float scale = 1 / sqrtf(variance / (float)width + epsilon);
    for (int64_t i = 0; i < whole; i += LANES) {
        const vector value = (load(row + i) - all(mean)) * all(scale);
        store(row + i, fused(value, load(norm->weight + i), load(norm->bias + i)));
    }
    for (int64_t i = whole; i < width; i++) row[i] = (row[i] - mean) * scale * norm->weight[i] + norm->bias[i];
}

static void normalise_all(const worker *me, float *x, int64_t rows, int64_t width, const termwise_norm *norm,
                          float epsilon) {
    const share mine = share_of(me, rows);
    for (int64_t row = mine.first; row < mine.last; row++) normalise(x + row * width, width, norm, epsilon);
}

static void embed(const worker *me, const termwise_model *model, const int32_t *ids, const int32_t *places,
                  int64_t tokens, float *x) {
    const int64_t width = model->embedding;
    const share mine = share_of(me, tokens);
    for (int64_t token = mine.first; token < mine.last; token++) {
        float *out = x + token * width;
        const float *place = model->positions + places[token] * width;
        if (model->words_kind == BFLOAT16) {
            const uint16_t *word = (const uint16_t *)model->words + ids[token] * width;
            for (int64_t i = 0; i < width; i++) {
                const uint32_t bits = (uint32_t)word[i] << 16;
                float value;
                memcpy(&value, &bits, sizeof value);
                out[i] = value + place[i];
            }
        } else {
            const float *word = (const float *)model->words + ids[token] * width;
            for (int64_t i = 0; i < width; i++) out[i] = word[i] + place[i];
        }
        normalise(out, width, &model->embedding_norm, model->epsilon);
    }
}

/* Memory of one head's attention over one text. */
typedef struct {
    uint32_t *keys;   /* packed: outputs are tokens, inputs a head's numbers */
    uint32_t *values; /* packed: outputs are a head's numbers, inputs tokens */
    float *scores;    /* [ROWS][tokens, whole panels] */
    uint32_t *shares; /* [ROWS][units of tokens] */
} attention_memory;

static int64_t panels_of(int64_t outputs) { return (outputs + PANEL - 1) / PANEL; }
static int64_t units_of(int64_t numbers, int64_t kind) { return kind == BFLOAT16 ? (numbers + 1) / 2 : numbers; }

/* Scores of one row to shares that are not divided by their sum yet; gives one over the sum. */
INLINE float soften(float *scores, int64_t tokens, float scale, const float *distances, uint32_t *shares, int64_t kind) {
    const int64_t whole = tokens / LANES * LANES;
    vector most = all(-INFINITY);
    for (int64_t i = 0; i < tokens; i += LANES) {
        vector score = load(scores + i) * all(scale);
        if (distances) score = score + load_some(distances + i, tokens - i);
        store(scores + i, score);
        /* Beyond the last token lie zeros, which are no scores. */
        if (i < whole) most = larger(score, most);
    }
    float top = largest(most);
    for (int64_t i = whole; i < tokens; i++) top = scores[i] > top ? scores[i] : top;
    vector total = all(0);
    const int64_t width = kind == BFLOAT16 ? units_of(tokens, kind) * 2 : tokens;
    for (int64_t i = 0; i < width; i += LANES) {
        vector share = exponential(load(scores + i) - all(top));
        if (i >= whole) {
            float lane[LANES];
            store(lane, share);
            share = load_some(lane, tokens - i);
        }
        total = total + share;
        if (kind == BFLOAT16) {
            store_halves((uint16_t *)shares + i, share, width - i);
        } else {
            store_some((float *)shares + i, share, width - i);
        }
    }
    return 1 / sum(total);
}

static void pack_head(const uint32_t *keys, const uint32_t *values, int64_t stride, int64_t tokens, int64_t width,
                      int64_t kind, const attention_memory *memory) {
    const int64_t key_units = units_of(width, kind), value_units = units_of(tokens, kind);
    for (int64_t token = 0; token < panels_of(tokens) * PANEL; token++) {
        uint32_t *to = memory->keys + token / PANEL * key_units * PANEL + token % PANEL;
        for (int64_t unit = 0; unit < key_units; unit++) {
            to[unit * PANEL] = token < tokens ? keys[token * stride + unit] : 0;
        }
    }
    for (int64_t panel = 0; panel < panels_of(width); panel++) {
        const int64_t column = panel * PANEL;
        const int64_t columns = width - column < PANEL ? width - column : PANEL;
        uint32_t *to = memory->values + panel * value_units * PANEL;
        for (int64_t unit = 0; unit < value_units; unit++, to += PANEL) {
            if (kind == BFLOAT16) {
                const uint16_t *even = (const uint16_t *)(values + 2 * unit * stride) + column;
                const uint16_t *odd = even + 2 * stride;
                const int both = 2 * unit + 1 < tokens;
                for (int64_t i = 0; i < columns; i++) to[i] = even[i] | (both ? (uint32_t)odd[i] << 16 : 0);
            } else {
                memcpy(to, values + unit * stride + column, (size_t)columns * sizeof *to);
            }
            if (columns < PANEL) memset(to + columns, 0, (size_t)(PANEL - columns) * sizeof *to);
        }
    }
}

/* One head over one text. `mixed` holds queries, keys and values of the text's first token, `stride` units a token. */
static void attend(const termwise_model *model, const uint32_t *mixed, int64_t stride, int64_t tokens, int64_t head,
                   const attention_memory *memory, const target *to) {
    const int32_t kind = (int32_t)model->attention_kind;
    const int64_t width = model->hidden / model->heads;
    const int64_t key_units = units_of(width, kind), value_units = units_of(tokens, kind);
    const int64_t part = units_of(model->hidden, kind);
    const uint32_t *queries = mixed + head * key_units;
    pack_head(queries + part, queries + 2 * part, stride, tokens, width, kind, memory);
    const float scale = 1 / sqrtf((float)width);
    const int64_t panels = panels_of(tokens), tiles = (tokens + ROWS - 1) / ROWS;
    int64_t row = 0;
    for (int64_t each = 0; each < tiles; each++) {
        const int64_t height = tokens / tiles + (each < tokens % tiles);
        float values[ROWS * PANEL], inverse[ROWS];
        for (int64_t number = 0; number < panels; number++) {
            const int64_t vectors = (tokens - number * PANEL + LANES - 1) / LANES;
            writing_tile(kind, height, vectors < VECTORS ? vectors : VECTORS)(
                queries + row * stride, stride, memory->keys + number * key_units * PANEL, key_units, NULL, NULL,
                memory->scores + number * PANEL, panels * PANEL);
        }
        for (int64_t i = 0; i < height; i++) {
            const float *distances = model->distances;
            if (distances) distances += head * (2 * model->furthest - 1) + model->furthest - 1 - (row + i);
            inverse[i] = soften(memory->scores + i * panels * PANEL, tokens, scale, distances,
                                memory->shares + i * value_units, kind);
        }
        for (int64_t column = 0; column < width; column += PANEL) {
            const int64_t vectors = (width - column + LANES - 1) / LANES;
            const int64_t some = vectors < VECTORS ? vectors : VECTORS;
            writing_tile(kind, height, some)(memory->shares, value_units,
                                             memory->values + column * value_units, value_units, NULL, NULL, values,
                                             PANEL);
            for (int64_t i = 0; i < height; i++) {
                for (int64_t v = 0; v < some; v++) {
                    const vector value = load(values + i * PANEL + v * LANES) * all(inverse[i]);
                    const int64_t first = column + v * LANES;
                    const int64_t place = (row + i) * to->stride + head * width + first;
                    if (to->floats) {
                        store_some(to->floats + place, value, width - first);
                    } else {
                        store_halves(to->halves + place, value, width - first);
                    }
                }
            }
        }
        row += height;
    }
}

/* Scratch memory, handed out piece by piece; with `base` NULL it only counts. */
typedef struct {
    char *base;
    int64_t used;
} arena;

static void *take(arena *from, int64_t bytes) {
    void *piece = from->base ? from->base + from->used : NULL;
    /* One vector more, since loads run over an end; the next piece begins on a cache line. */
    from->used += (bytes + 64 + 63) / 64 * 64;
    return piece;
}

/* Memory of a block of texts. */
typedef struct {
    float *x;         /* [tokens][hidden] */
    float *wide;      /* [tokens][the widest product], where floats are wanted */
    uint32_t *narrow; /* units of rows of that width */
    uint32_t *units;  /* a product's rows */
    float *scale;
    attention_memory attention[MOST_THREADS];
} block_memory;

static int64_t wider(int64_t a, int64_t b) { return a > b ? a : b; }

static void take_block(arena *from, const termwise_model *model, int64_t tokens, int64_t longest, int64_t threads,
                       block_memory *memory) {
    const int64_t kind = model->attention_kind, head = model->hidden / model->heads;
    int64_t width = wider(3 * model->hidden, model->embedding);
    for (int64_t i = 0; i < model->layers; i++) width = wider(width, model->layer[i].intermediate.outputs + 4);
    memory->x = take(from, tokens * wider(model->hidden, model->embedding) * 4);
    memory->wide = take(from, tokens * width * 4);
    memory->narrow = take(from, tokens * width * 4);
    memory->units = take(from, tokens * width * 4);
    memory->scale = take(from, tokens * 4);
    for (int64_t i = 0; i < threads; i++) {
        memory->attention[i].keys = take(from, panels_of(longest) * PANEL * units_of(head, kind) * 4);
        memory->attention[i].values = take(from, panels_of(head) * PANEL * units_of(longest, kind) * 4);
        memory->attention[i].scores = take(from, ROWS * panels_of(longest) * PANEL * 4);
        memory->attention[i].shares = take(from, ROWS * units_of(longest, kind) * 4);
    }
}

/* Rows of floats as a matrix wants them; floats stay where they are. The team meets before and after. */
static termwise_rows prepare(const worker *me, const float *from, int64_t width, int64_t rows,
                             const termwise_matrix *matrix, block_memory *memory) {
    meet(me);
    if (matrix->kind == FLOAT32) return (termwise_rows){(const uint32_t *)from, NULL, width};
    const share mine = share_of(me, rows);
    cast(from + mine.first * width, width, mine.last - mine.first, matrix, memory->units + mine.first * matrix->units,
         memory->scale + mine.first);
    meet(me);
    return (termwise_rows){memory->units, memory->scale, matrix->units};
}

/* A place for what `matrix` will multiply: bfloat16 where it takes that, floats otherwise. Rows of an odd width stay
   floats too: who writes them head by head would leave the last half of each row's last unit as it was. */
static target place_for(const termwise_matrix *matrix, int64_t width, float *floats, uint32_t *halves) {
    if (matrix->kind == BFLOAT16 && width % 2 == 0) return (target){.halves = (uint16_t *)halves, .stride = 2 * matrix->units};
    return (target){.floats = floats, .stride = width};
}

static termwise_rows take_up(const worker *me, const target *from, int64_t width, int64_t rows,
                             const termwise_matrix *matrix, block_memory *memory) {
    if (from->floats) return prepare(me, from->floats, width, rows, matrix, memory);
    meet(me);
    return (termwise_rows){(const uint32_t *)from->halves, NULL, matrix->units};
}

static void run_layer(const worker *me, const termwise_model *model, const termwise_layer *layer, const int64_t *starts,
                      int64_t texts, block_memory *memory) {
    const int64_t hidden = model->hidden, tokens = starts[texts] - starts[0];
    const int half = model->attention_kind == BFLOAT16;
    const target sum = {.floats = memory->x, .stride = hidden, .add = 1};

    const target mixed = {.floats = half ? NULL : memory->wide, .halves = (uint16_t *)memory->wide, .stride = 3 * hidden};
    termwise_rows rows = prepare(me, memory->x, hidden, tokens, &layer->mixed, memory);
    multiply(me, &layer->mixed, &rows, tokens, &mixed);
    meet(me);

    const target attended = place_for(&layer->attention, hidden, (float *)memory->narrow, memory->narrow);
    const int64_t stride = half ? 3 * hidden / 2 : 3 * hidden;
    for (int64_t each = me->rank; each < texts * model->heads; each += me->of->size) {
        const int64_t text = each / model->heads, row = starts[text] - starts[0];
        target to = attended;
        if (to.floats) to.floats += row * to.stride;
        if (to.halves) to.halves += row * to.stride;
        attend(model, (const uint32_t *)memory->wide + row * stride, stride, starts[text + 1] - starts[text],
               each % model->heads, &memory->attention[me->rank], &to);
    }
    rows = take_up(me, &attended, hidden, tokens, &layer->attention, memory);
    multiply(me, &layer->attention, &rows, tokens, &sum);
    meet(me);
    normalise_all(me, memory->x, tokens, hidden, &layer->attention_norm, model->epsilon);

    const int64_t width = layer->intermediate.outputs;
    const target inner = place_for(&layer->output, width, memory->wide, memory->narrow);
    rows = prepare(me, memory->x, hidden, tokens, &layer->intermediate, memory);
    multiply(me, &layer->intermediate, &rows, tokens, &inner);
    rows = take_up(me, &inner, width, tokens, &layer->output, memory);
    multiply(me, &layer->output, &rows, tokens, &sum);
    meet(me);
    normalise_all(me, memory->x, tokens, hidden, &layer->output_norm, model->epsilon);
}

/* Run texts `first` to `last` and write what the decoder multiplies: units, and their scales. */
static void run_block(const worker *me, const termwise_model *model, const termwise_batch *batch, int64_t first,
                      int64_t last, block_memory *memory, uint32_t *units, float *scale) {
    const int64_t *starts = batch->starts + first;
    const int64_t start = starts[0], tokens = batch->starts[last] - start, width = model->embedding;
    embed(me, model, batch->ids + start, batch->places + start, tokens, model->project ? memory->wide : memory->x);
    if (model->project) {
        const target to = {.floats = memory->x, .stride = model->hidden};
        const termwise_rows rows = prepare(me, memory->wide, width, tokens, model->project, memory);
        multiply(me, model->project, &rows, tokens, &to);
    }
    for (int64_t i = 0; i < model->layers; i++) run_layer(me, model, model->layer + i, starts, last - first, memory);
    const target to = {.floats = memory->wide, .stride = width};
    const termwise_rows rows = prepare(me, memory->x, model->hidden, tokens, &model->transform, memory);
    multiply(me, &model->transform, &rows, tokens, &to);
    meet(me);
    const share mine = share_of(me, tokens);
    float *from = memory->wide + mine.first * width;
    for (int64_t i = 0; i < mine.last - mine.first; i++) {
        normalise(from + i * width, width, &model->head_norm, model->epsilon);
    }
    cast(from, width, mine.last - mine.first, &model->decoder, units + (start + mine.first) * model->decoder.units,
         scale + start + mine.first);
    meet(me);
}

/* The end of the block that begins with text `first`. */
static int64_t block_end(const termwise_batch *batch, int64_t first) {
    int64_t last = first + 1;
    while (last < batch->texts && batch->starts[last + 1] - batch->starts[first] <= BLOCK) last++;
    return last;
}

typedef struct {
    uint32_t *units;
    float *scale;
    block_memory block;
} batch_memory;

static void take_batch(arena *from, const termwise_model *model, const termwise_batch *batch, batch_memory *memory) {
    const int64_t total = batch->starts[batch->texts];
    int64_t most = 0, longest = 0;
    for (int64_t first = 0, last; first < batch->texts; first = last) {
        last = block_end(batch, first);
        most = wider(most, batch->starts[last] - batch->starts[first]);
    }
    for (int64_t text = 0; text < batch->texts; text++) {
        longest = wider(longest, batch->starts[text + 1] - batch->starts[text]);
    }
    memory->units = take(from, total * model->decoder.units * 4);
    memory->scale = take(from, total * 4);
    take_block(from, model, most, longest, batch->threads < MOST_THREADS ? batch->threads : MOST_THREADS,
               &memory->block);
}

static int64_t scratch_size(const termwise_model *model, const termwise_batch *batch) {
    arena count = {0};
    batch_memory memory;
    take_batch(&count, model, batch, &memory);
    return count.used;
}

typedef struct {
    const termwise_model *model;
    const termwise_batch *batch;
    batch_memory memory;
    float *out;
} encoding;

static void encode_share(const worker *me, void *given) {
    encoding *job = given;
    const termwise_model *model = job->model;
    const termwise_batch *batch = job->batch;
    for (int64_t first = 0, last; first < batch->texts; first = last) {
        last = block_end(batch, first);
        run_block(me, model, batch, first, last, &job->memory.block, job->memory.units, job->memory.scale);
    }
    const termwise_rows rows = {job->memory.units, job->memory.scale, model->decoder.units};
    const share mine = share_of(me, panels_of(model->decoder.outputs));
    pool(&model->decoder, &rows, batch->starts, batch->texts, mine.first, mine.last, job->out, model->decoder.outputs);
}

static void encode(const termwise_model *model, const termwise_batch *batch, void *scratch, float *out) {
    arena from = {.base = scratch};
    encoding job = {.model = model, .batch = batch, .out = out};
    take_batch(&from, model, batch, &job.memory);
    run_together(batch->threads, encode_share, &job);
}

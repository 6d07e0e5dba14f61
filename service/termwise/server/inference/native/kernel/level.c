/* One level of instructions: this file is compiled once a level, with LEVEL its name and the compiler's flags for it. */
#include "body.h"

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define TEXT_(a) #a
#define TEXT(a) TEXT_(a)

const termwise_level JOIN(termwise_level_, LEVEL) = {
    .name = TEXT(LEVEL),
    .panel = PANEL,
    .kinds = 1 << FLOAT32 | HAS_BFLOAT16 << BFLOAT16 | HAS_INT8 << INT8,
    .cast = cast,
    .pool = pool,
    .scratch = scratch_size,
    .encode = encode,
};

/* Picks the best level that the processor has. Compiled without flags: this much runs on any x86-64. */
#include "kernel.h"

extern const termwise_level termwise_level_avx2, termwise_level_avx512, termwise_level_avx512bf16;

/* Give a level by its rank from 0, the best one; NULL where the processor lacks it, or there is none. */
__attribute__((visibility("default"))) const termwise_level *termwise_find(int64_t rank) {
    __builtin_cpu_init();
    const int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                       __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                       __builtin_cpu_supports("avx512vnni");
    const int avx512bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
    if (rank == 0) return avx512bf16 ? &termwise_level_avx512bf16 : NULL;
    if (rank == 1) return avx512 ? &termwise_level_avx512 : NULL;
    if (rank == 2) return avx2 ? &termwise_level_avx2 : NULL;
    return NULL;
}

/* The size of what the caller mirrors: a library of another day must not be given today's structures. */
__attribute__((visibility("default"))) int64_t termwise_size(void) {
    return (int64_t)(sizeof(termwise_level) + sizeof(termwise_model) + sizeof(termwise_layer) + sizeof(termwise_batch) +
                     sizeof(termwise_rows));
}

/* Picks the best level that the processor has. Compiled without flags: this much runs on any x86-64. WITH_ and a level's
   name are defined for the levels that the compiler knows, SOURCES as a digest of these files. */
#include "kernel.h"

extern const termwise_level termwise_level_avx2, termwise_level_avx512, termwise_level_avx512bf16;

/* Give a level by its rank from 0, the best one; NULL where the processor or the compiler lacks it, or there is none. */
__attribute__((visibility("default"))) const termwise_level *termwise_find(int64_t rank) {
    __builtin_cpu_init();
    const int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#ifdef WITH_avx2
    if (rank == 2) return avx2 ? &termwise_level_avx2 : NULL;
#endif
#ifdef WITH_avx512
    const int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                       __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                       __builtin_cpu_supports("avx512vnni");
    if (rank == 1) return avx512 ? &termwise_level_avx512 : NULL;
#ifdef WITH_avx512bf16
    if (rank == 0) return avx512 && __builtin_cpu_supports("avx512bf16") ? &termwise_level_avx512bf16 : NULL;
#endif
#endif
    (void)avx2, (void)rank;
    return NULL;
}

/* The size of what the caller mirrors: a library of another day must not be given today's structures. */
__attribute__((visibility("default"))) int64_t termwise_size(void) {
    return (int64_t)(sizeof(termwise_level) + sizeof(termwise_model) + sizeof(termwise_layer) + sizeof(termwise_batch) +
                     sizeof(termwise_rows));
}

/* What it was compiled from: a library of another day must not hide what its sources say today. */
__attribute__((visibility("default"))) const char *termwise_sources(void) { return SOURCES; }

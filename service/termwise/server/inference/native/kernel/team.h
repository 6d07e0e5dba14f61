/* Threads that go through one job together: each runs the same code on its share, and they meet after each step.

   They are started a call: that costs some 20 microseconds a thread, and leaves nothing to look after in between. */
#ifndef TERMWISE_TEAM_H
#define TERMWISE_TEAM_H

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>

#define MOST_THREADS 64
/* Some 5 to 10 microseconds. */
#define MOST_PAUSES 200

typedef struct team team;

/* One thread of a team. */
typedef struct {
    team *of;
    int64_t rank;
} worker;

struct team {
    int64_t size;
    void (*work)(const worker *me, void *job);
    void *job;
    atomic_int open;
    atomic_llong arrived;
    atomic_llong round;
    worker workers[MOST_THREADS];
};

/* A share of `count` things: from `first` on, to `last`. */
typedef struct {
    int64_t first;
    int64_t last;
} share;

static inline share share_of(const worker *me, int64_t count) {
    const int64_t size = me->of->size;
    return (share){count * me->rank / size, count * (me->rank + 1) / size};
}

/* Wait until every thread of the team is here. The steps are short, so that sleeping would take longer; but who waits
   long waits for a thread that has no processor, perhaps for want of this one, so it gives this one up. */
static inline void meet(const worker *me) {
    team *const all = me->of;
    if (all->size == 1) return;
    const long long round = atomic_load(&all->round);
    if (atomic_fetch_add(&all->arrived, 1) + 1 == all->size) {
        atomic_store(&all->arrived, 0);
        atomic_fetch_add(&all->round, 1);
        return;
    }
    for (int turn = 0; atomic_load(&all->round) == round; turn++) {
        if (turn < MOST_PAUSES) {
            __builtin_ia32_pause();
        } else {
            sched_yield();
        }
    }
}

static void *join_in(void *given) {
    worker *me = given;
    while (!atomic_load(&me->of->open)) sched_yield();
    me->of->work(me, me->of->job);
    return NULL;
}

/* Run a job on up to `threads` threads, the calling one among them. */
static void run_together(int64_t threads, void (*work)(const worker *me, void *job), void *job) {
    team all = {.size = 1, .work = work, .job = job};
    pthread_t started[MOST_THREADS];
    all.workers[0] = (worker){&all, 0};
    while (all.size < threads && all.size < MOST_THREADS) {
        all.workers[all.size] = (worker){&all, all.size};
        /* Where the system grants no more threads, fewer do the work. */
        if (pthread_create(&started[all.size], NULL, join_in, &all.workers[all.size])) break;
        all.size++;
    }
    atomic_store(&all.open, 1);
    work(&all.workers[0], job);
    for (int64_t i = 1; i < all.size; i++) pthread_join(started[i], NULL);
}

#endif

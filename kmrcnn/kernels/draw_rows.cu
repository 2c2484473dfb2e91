// Draws positives and negatives: of each kind those with the smallest (hash, slot), in that order.
//
// Keys are 31 bits of hash above, the slot below. A histogram of their leading bits, refined where it has to be, gives
// a limit below which lie all that are wanted and little more; these come to shared memory, where each counts how many
// are smaller: its rank is its row. The candidates come from the lists of label_boxes, or, where a list is too short or
// misses some that are wanted, from all labels.
//
// Budget for S rows of an image: its two lists (256 S bytes at most) read up to twice, 8 S bytes out; with the labels
//   instead of a list, A bytes up to four times; shared memory 8 (S + 256) + 8 K bytes, its atomics only; 1 launch.
// Launch rule: a block of 512 an image and kind, grid (2, B).
// Determinism: ranks do not depend on the order in which candidates arrive. Keys are distinct, as slots are.

#define BLOCK 512
#define BINS 2048
#define NOBODY 0xffffffffffffffffull

typedef unsigned long long u64;

struct Candidates {
  const u64 *list;  // null: look at the labels
  const signed char *label;
  int count, kind, seed, stream;
};

__device__ __forceinline__ u64 candidate(const Candidates &from, int i) {
  if (from.list) return from.list[i];
  if (from.label[i] != from.kind) return NOBODY;
  return (u64)sampling_rank(from.seed, from.stream, i) << 32 | (unsigned)i;
}

// In shared memory.
struct Narrowing {
  int histogram[BINS], totals[BLOCK / 32];
  int digit, smaller;  // the bin in which the last wanted candidate lies, and how many are in those before
};

// Sum of the values of this thread and all before it.
__device__ __forceinline__ int sum_up_to(int value, int *totals) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll
  for (int step = 1; step < 32; step <<= 1) {
    int other = __shfl_up_sync(0xffffffffu, value, step);
    if (lane >= step) value += other;
  }
  if (lane == 31) totals[warp] = value;
  __syncthreads();
  for (int w = 0; w < warp; w++) value += totals[w];
  return value;
}

// The `wanted` smallest candidates are below the result, and at most `room` are. No more than four share a rank, so
// all its 31 bits always do with room for wanted + 3.
__device__ __forceinline__ u64 limit_of(const Candidates &from, int wanted, int room, Narrowing &shared) {
  int *histogram = shared.histogram;
  if (from.count <= room) return NOBODY;
  unsigned prefix = 0;
  int shift = 31, before = 0;
  for (int pass = 0; pass < 3; pass++) {
    int bits = pass == 0 ? 11 : 10;
    shift -= bits;
    for (int bin = threadIdx.x; bin < BINS; bin += BLOCK) histogram[bin] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < from.count; i += BLOCK) {
      u64 entry = candidate(from, i);
      unsigned key = (unsigned)(entry >> 32);
      if (entry != NOBODY && key >> shift >> bits == prefix) atomicAdd(&histogram[key >> shift & ((1 << bits) - 1)], 1);
    }
    __syncthreads();
    int mine = 0, first = threadIdx.x * (BINS / BLOCK);
    for (int bin = first; bin < first + BINS / BLOCK; bin++) mine += histogram[bin];
    int passed = before + sum_up_to(mine, shared.totals) - mine;
    if (passed < wanted && passed + mine >= wanted) {
      int bin = first;
      for (; passed + histogram[bin] < wanted; bin++) passed += histogram[bin];
      shared.digit = bin, shared.smaller = passed;
    }
    __syncthreads();
    prefix = prefix << bits | shared.digit;
    before = shared.smaller;
    int up_to = before + histogram[shared.digit];
    __syncthreads();  // all have read before the next pass writes
    if (up_to <= room) break;
  }
  return (u64)(prefix + 1) << (32 + shift);
}

// index (B, size): slots, positives first, 0 in unused rows; match (B, size): 1, -1, 0. counts as label_boxes left it.
// per_positive: Matterport's drawn rows for each positive one; 0: negatives fill the rows.
extern "C" __global__ void __launch_bounds__(BLOCK)
draw_rows(const signed char *label, int slots, const u64 *lists, int capacity, const int *counts, const int *seed,
          int stream, int max_positives, int size, float per_positive, int room, int *index, int *match) {
  extern __shared__ u64 pool[];
  __shared__ Narrowing narrowing;
  __shared__ int filled;
  long long image = blockIdx.y;
  int kind = blockIdx.x;
  const int *count = counts + image * 4;
  int positives = min(min(count[0], max_positives), size), wanted = positives;
  if (kind == 1) {
    wanted = per_positive > 0.f ? (int)((float)positives * per_positive) - positives : size - positives;
    wanted = max(min(min(wanted, count[1]), size - positives), 0);
  }
  int listed = count[2 + kind];
  bool complete = listed <= capacity && (listed >= wanted || listed == count[kind]);
  Candidates from = {complete ? lists + (image * 2 + kind) * capacity : nullptr, label + image * slots,
                     complete ? listed : slots, kind ? -1 : 1, seed[image], stream + kind};
  index += image * size, match += image * size;
  if (kind == 1)
    for (int row = positives + wanted + threadIdx.x; row < size; row += BLOCK) index[row] = 0, match[row] = 0;
  if (wanted == 0) return;  // all threads alike

  if (threadIdx.x == 0) filled = 0;
  u64 limit = limit_of(from, wanted, room, narrowing);
  __syncthreads();
  for (int i = threadIdx.x; i < from.count; i += BLOCK) {
    u64 entry = candidate(from, i);
    if (entry < limit) pool[atomicAdd(&filled, 1)] = entry;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < filled; i += BLOCK) {
    u64 mine = pool[i];
    int rank = 0;
    for (int j = 0; j < filled; j++) rank += pool[j] < mine;
    if (rank >= wanted) continue;
    int row = kind ? positives + rank : rank;
    index[row] = (int)(unsigned)mine;
    match[row] = kind ? -1 : 1;
  }
}

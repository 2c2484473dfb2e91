// Greedy non-maximum suppression of many problems at once: images x levels, or images whose boxes have classes.
//
// Order, then a triangle of 64 x 64 comparisons as bits, then one block a problem that reads the bits and stops at the
// limit. Nothing is copied to the host; a problem whose boxes are all used up leaves -1 in its rows of the result.
//
// Budget for N boxes a problem: 20 N bytes in, 20 N out of the sort; N^2 / 16 bytes of bits written once and read once
//   (250 KB for N = 2000), of which tiles without a usable box are neither written nor read; 3 launches, no atomics.
// Launch rule: nms_sort a block a problem, up to 4096 boxes in shared memory; above that nms_keys, a sort of the keys
//   by the caller, and nms_place, a thread a box. nms_mask a block of 64 a tile of the upper triangle and problem.
//   nms_scan a block of 512 a problem. T tiles of 64 boxes a problem, the last one part-filled.
// Determinism: no result depends on the order of threads. IoU is rounded as in kmrcnn.ops.box_iou.

#define TILE 64
#define ALL 0xffffffffu
#define UNUSABLE 0xffffffffffffffffull

typedef unsigned long long u64;

// Ascending: higher scores first, equal ones by index, so that any sort is stable. NaN and -inf come last.
__device__ __forceinline__ u64 sort_key(float score, int index) {
  if (!(score > __int_as_float(0xff800000))) return UNUSABLE;
  return (u64)~ordered_bits(score) << 32 | (unsigned)index;
}

struct Boxes {
  const float *corners;
  const int *classes;  // null: all are one class
};

struct Sorted {
  float4 *corners;
  int *classes;
  int *order;
  unsigned *alive;  // a bit a box; two words a tile
};

// Puts the box a key names at its rank.
__device__ __forceinline__ void place(u64 key, int problem, int rank, int count, Boxes from, Sorted to) {
  bool usable = key != UNUSABLE;
  unsigned alive = __ballot_sync(ALL, usable);
  int words = (count + TILE - 1) / TILE * 2;
  if ((threadIdx.x & 31) == 0) to.alive[(long long)problem * words + rank / 32] = alive;
  if (rank >= count) return;
  long long target = (long long)problem * count + rank;
  int index = usable ? (int)(unsigned)key : 0;
  Box box = load_box(from.corners, (long long)problem * count + index);
  to.corners[target] = make_float4(box.y1, box.x1, box.y2, box.x2);
  to.order[target] = index;
  if (from.classes) to.classes[target] = from.classes[(long long)problem * count + index];
}

// Bitonic sort of `padded` keys, a power of two and at least a tile. A warp's pairs up to 32 apart are its own 64 keys.
__device__ void sort_block(u64 *keys, int padded) {
  int last = padded;
  for (int size = 2; size <= padded; size *= 2) {
    for (int stride = size / 2; stride > 0; stride /= 2) {
      if (stride > 32 || last > 32) __syncthreads();
      else __syncwarp();
      last = stride;
      for (int pair = threadIdx.x; pair < padded / 2; pair += blockDim.x) {
        int low = 2 * pair - (pair & (stride - 1)), high = low + stride;
        u64 a = keys[low], b = keys[high];
        if ((a > b) == ((low & size) == 0)) keys[low] = b, keys[high] = a;
      }
    }
  }
  __syncthreads();
}

extern "C" __global__ void __launch_bounds__(1024)
nms_sort(const float *corners, const float *scores, const int *classes, int count, int padded, float4 *sorted_corners,
         int *sorted_classes, int *order, unsigned *alive) {
  extern __shared__ u64 keys[];
  int problem = blockIdx.x;
  for (int i = threadIdx.x; i < padded; i += blockDim.x)
    keys[i] = i < count ? sort_key(scores[(long long)problem * count + i], i) : UNUSABLE;
  sort_block(keys, padded);
  Boxes from = {corners, classes};
  Sorted to = {sorted_corners, sorted_classes, order, alive};
  for (int i = threadIdx.x; i < (count + TILE - 1) / TILE * TILE; i += blockDim.x)
    place(keys[i], problem, i, count, from, to);
}

// The top bit is turned over because the caller sorts signed integers.
extern "C" __global__ void __launch_bounds__(256) nms_keys(const float *scores, int count, u64 *keys) {
  int i = blockIdx.x * 256 + threadIdx.x;
  long long target = (long long)blockIdx.y * count + i;
  if (i < count) keys[target] = sort_key(scores[target], i) ^ (1ull << 63);
}

extern "C" __global__ void __launch_bounds__(256)
nms_place(const u64 *keys, const float *corners, const int *classes, int count, float4 *sorted_corners,
          int *sorted_classes, int *order, unsigned *alive) {
  int i = blockIdx.x * 256 + threadIdx.x, problem = blockIdx.y;
  if ((i & ~31) >= (count + TILE - 1) / TILE * TILE) return;
  Boxes from = {corners, classes};
  Sorted to = {sorted_corners, sorted_classes, order, alive};
  place(i < count ? keys[(long long)problem * count + i] ^ (1ull << 63) : UNUSABLE, problem, i, count, from, to);
}

// A box with a NaN overlaps nothing, like one without area.
__device__ __forceinline__ Box load_whole(const float4 *corners, long long row) {
  float4 c = corners[row];
  Box box = {c.x, c.y, c.z, c.w};
  return has_nan(box) ? Box{0.f, 0.f, 0.f, 0.f} : box;
}

// Word `box` of tile (row, column), row <= column: which boxes of the row tile suppress this box of the column tile.
extern "C" __global__ void __launch_bounds__(TILE)
nms_mask(const float4 *corners, const int *classes, const u64 *alive, int count, float threshold, u64 *mask) {
  __shared__ Box others[TILE];
  __shared__ float areas[TILE];
  __shared__ int kinds[TILE];
  int tile = blockIdx.x, problem = blockIdx.y, box = threadIdx.x, tiles = (count + TILE - 1) / TILE;
  int column = (int)((sqrtf(8.f * tile + 1.f) - 1.f) * 0.5f);
  while (column * (column + 1) / 2 > tile) column--;
  while ((column + 1) * (column + 2) / 2 <= tile) column++;
  int row = tile - column * (column + 1) / 2;
  alive += (long long)problem * tiles;
  if (!alive[row] || !alive[column]) return;
  long long first = (long long)problem * count;
  int other = row * TILE + box, mine = column * TILE + box;
  if (other < count) {
    others[box] = load_whole(corners, first + other);
    areas[box] = box_area(others[box]);
    kinds[box] = classes ? classes[first + other] : 0;
  }
  __syncthreads();
  u64 word = 0;
  if (mine < count) {
    Box corner = load_whole(corners, first + mine);
    float area = box_area(corner);
    int kind = classes ? classes[first + mine] : 0, rows = row == column ? box : TILE;
    for (int i = 0; i < rows; i++)
      if (kind == kinds[i] && box_iou(others[i], corner, areas[i], area) > threshold) word |= 1ull << i;
  }
  mask[((long long)problem * gridDim.x + tile) * TILE + box] = word;
}

// The kept boxes among `open`: a box is kept when no kept box before it suppresses it. Starting with all and applying
// that rule until nothing changes gives the greedy choice. A lane answers for boxes `lane` and `lane + 32`.
__device__ __forceinline__ u64 choose(u64 open, const u64 *suppressors) {
  int lane = threadIdx.x & 31;
  u64 low = suppressors[lane], high = suppressors[lane + 32], kept = open, last;
  do {
    last = kept;
    unsigned first = __ballot_sync(ALL, !(low & last)), second = __ballot_sync(ALL, !(high & last));
    kept = open & ((u64)second << 32 | first);
  } while (kept != last);
  return kept;
}

__device__ __forceinline__ void store(int *keep, int place, int limit, u64 kept, int bit, const int *order, int first) {
  place += __popcll(kept & ((1ull << bit) - 1));
  if (kept >> bit & 1 && place < limit) keep[place] = order ? order[first + bit] : first + bit;
}

// order null: the boxes came sorted.
extern "C" __global__ void __launch_bounds__(512)
nms_scan(const u64 *mask, const u64 *alive, const int *order, int count, int limit, int *keep) {
  extern __shared__ u64 kept[];
  __shared__ unsigned suppressed[16];
  __shared__ int total;
  int problem = blockIdx.x, box = threadIdx.x % TILE, group = threadIdx.x / TILE, tiles = (count + TILE - 1) / TILE;
  mask += (long long)problem * (tiles * (tiles + 1) / 2) * TILE;
  alive += (long long)problem * tiles;
  keep += (long long)problem * limit;
  if (order) order += (long long)problem * count;
  if (threadIdx.x == 0) total = 0;
  for (int column = 0; column < tiles; column++) {
    __syncthreads();
    if (total >= limit) break;
    const u64 *words = mask + (long long)column * (column + 1) / 2 * TILE;
    u64 open = alive[column];
    bool hit = false;
    if (open)
      for (int row = group; row < column; row += 8)
        if (kept[row]) hit |= (words[row * TILE + box] & kept[row]) != 0;
    unsigned vote = __ballot_sync(ALL, hit);
    if (threadIdx.x % 32 == 0) suppressed[threadIdx.x / 32] = vote;
    __syncthreads();
    if (threadIdx.x >= 32) continue;
    for (int i = 0; i < 16; i++) open &= ~((u64)suppressed[i] << (i % 2 * 32));
    u64 chosen = open ? choose(open, words + column * TILE) : 0;
    int before = total;
    store(keep, before, limit, chosen, threadIdx.x, order, column * TILE);
    store(keep, before, limit, chosen, threadIdx.x + 32, order, column * TILE);
    __syncwarp();
    if (threadIdx.x == 0) kept[column] = chosen, total = before + __popcll(chosen);
  }
  __syncthreads();
  for (int i = total + threadIdx.x; i < limit; i += blockDim.x) keep[i] = -1;
}

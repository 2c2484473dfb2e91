// Which boxes may be drawn: all anchors of a pyramid, or the proposals of each image, against the image's ground truth.
//
// No IoU matrix: ground truth sits in shared memory, a box in registers. best_of_objects finds the best IoU of every
// object, where anchors may be claimed by it; label_boxes compares again, as that is cheaper than storing, and says of
// each box whether it is positive, negative or neither. It also lists those with a low hash, so that the draw need not
// look at all boxes again.
//
// Budget for A boxes, B images, M objects: 32 A bytes read a time from the cache, A B bytes of labels, about 128 bytes
//   a drawn row of lists written; 2 A B M IoUs; an atomic a block and object, and 4 a block; 1 launch each.
// Launch rule: best_of_objects a block of 256 for 1024 boxes, label_boxes a block of 256 for 256 boxes; grid (., B).
// Determinism: the best IoU is a maximum, labels depend on nothing else; only the order inside a list varies, and the
//   draw sorts it. IoU is rounded step by step as in kmrcnn.ops.box_iou, so boxes tie as they do there.

#define BLOCK 256
#define EACH 4   // boxes a thread compares in best_of_objects
#define TILE 64  // rows of ground truth in shared memory at once
#define ALL 0xffffffffu

typedef unsigned long long u64;

// The ground truth of one image after the other.
struct Truth {
  const int *classes;  // 0 padding, negative crowd
  const float4 *boxes;
  int rows;
};

struct Tile {
  Box box[TILE];
  float area[TILE], limit[TILE];
  int row[TILE], crowd[TILE];
  int count;
};

// Rows first, first + 1, ... of an image without padding, in their order; by the first warp of a block.
// best and above: from which IoU on an object claims a box, see claim_limits in kmrcnn/ops/matching.py.
__device__ __forceinline__ void fill_tile(Tile &tile, Truth truth, long long image, int first, const int *best, float above,
                          float share) {
  int lane = threadIdx.x, kept = 0;
  for (int part = 0; part < TILE; part += 32) {
    int row = first + part + lane;
    long long at = image * truth.rows + row;
    int id = row < truth.rows ? truth.classes[at] : 0;
    unsigned real = __ballot_sync(ALL, id != 0);
    if (id != 0) {
      int place = kept + __popc(real & ((1u << lane) - 1));
      float most = best ? __int_as_float(best[at]) : 0.f;
      tile.box[place] = comparable(truth.boxes[at]);
      tile.area[place] = box_area(tile.box[place]);
      tile.limit[place] = best && id > 0 && most > above ? most * share : __int_as_float(0x7f800000);
      tile.row[place] = row;
      tile.crowd[place] = id < 0;
    }
    kept += __popc(real);
  }
  if (lane == 0) tile.count = kept;
}

// best (B, rows): the bits of the best IoU any of the boxes (count, 4) has with each object; zero at first.
extern "C" __global__ void __launch_bounds__(BLOCK)
best_of_objects(const float4 *boxes, int count, const int *classes, const float4 *truth_boxes, int rows, int *best) {
  __shared__ Tile tile;
  __shared__ int found[TILE];
  Truth truth = {classes, truth_boxes, rows};
  Box mine[EACH];
  float area[EACH];
#pragma unroll
  for (int e = 0; e < EACH; e++) {
    long long slot = ((long long)blockIdx.x * EACH + e) * BLOCK + threadIdx.x;
    mine[e] = slot < count ? comparable(boxes[slot]) : Box{0.f, 0.f, 0.f, 0.f};
    area[e] = box_area(mine[e]);
  }
  for (int first = 0; first < rows; first += TILE) {
    __syncthreads();  // nobody reads the last tile of objects
    if (threadIdx.x < 32) fill_tile(tile, truth, blockIdx.y, first, nullptr, 0.f, 0.f);
    if (threadIdx.x < TILE) found[threadIdx.x] = 0;
    __syncthreads();
    for (int g = 0; g < tile.count; g++) {
      float value = 0.f;
#pragma unroll
      for (int e = 0; e < EACH; e++) value = fmaxf(value, box_iou(tile.box[g], mine[e], tile.area[g], area[e]));
      if (!__any_sync(ALL, value > 0.f)) continue;
#pragma unroll
      for (int step = 16; step; step >>= 1) value = fmaxf(value, __shfl_xor_sync(ALL, value, step));
      if ((threadIdx.x & 31) == 0) atomicMax(&found[g], __float_as_int(value));  // the bits of floats >= 0 ascend
    }
    __syncthreads();
    if (threadIdx.x < tile.count && found[threadIdx.x] > 0)
      atomicMax(&best[(long long)blockIdx.y * rows + tile.row[threadIdx.x]], found[threadIdx.x]);
  }
}

struct Rules {
  float positive_iou, negative_iou, crowd_iou;
  float above, share;  // an object whose best IoU is greater than `above` claims boxes from that times `share` on
  float straddle;      // pixels a box may reach beyond the frame
};

struct Draw {
  int stream;           // of the positives' hash; the negatives' is the next
  int negatives_below;  // hash below which negatives are listed
  int capacity;         // of each list
};

__device__ __forceinline__ bool inside(float4 box, float4 frame, float straddle) {
  return box.x >= frame.x - straddle && box.y >= frame.y - straddle && box.z <= frame.z + straddle &&
         box.w <= frame.w + straddle;
}

// 1, 0 or -1. best: claims count, or null.
__device__ __forceinline__ int label_of(Box box, Tile &tile, Truth truth, const int *best, Rules rules) {
  float area = box_area(box), most = -2.f, least = 2.f;
  bool claimed = false;
  int seen = 0;
  for (int first = 0; first < truth.rows; first += TILE) {
    __syncthreads();  // nobody reads the last tile
    if (threadIdx.x < 32) fill_tile(tile, truth, blockIdx.y, first, best, rules.above, rules.share);
    __syncthreads();
    for (int g = 0; g < tile.count; g++) {
      float iou = box_iou(tile.box[g], box, tile.area[g], area);
      if (tile.crowd[g]) iou = -iou;
      most = fmaxf(most, iou), least = fminf(least, iou);
      claimed |= iou >= tile.limit[g];
    }
    seen += tile.count;
  }
  if (seen < truth.rows || truth.rows == 0) most = fmaxf(most, 0.f), least = fminf(least, 0.f);  // padding
  if (claimed || most >= rules.positive_iou) return 1;
  return most >= rules.negative_iou || least <= -rules.crowd_iou ? 0 : -1;
}

// Labels of `count` boxes, the same for all images or `per_image`, then of the ground truth itself if `appended`.
//
// Boxes per image that are all zero are padding. label (B, slots); counts (B, 4), zero at first: positives, negatives,
// and how many of each are listed, more than the capacity if the list is too short; lists (B, 2, capacity): hash above,
// slot below.
extern "C" __global__ void __launch_bounds__(BLOCK)
label_boxes(const float4 *boxes, int count, bool per_image, bool appended, const int *classes,
            const float4 *truth_boxes, int rows, const int *best, const float4 *frame, const int *seed, Rules rules,
            Draw draw, signed char *label, u64 *lists, int *counts) {
  __shared__ Tile tile;
  __shared__ int tally[4], base[2];
  Truth truth = {classes, truth_boxes, rows};
  long long image = blockIdx.y;
  int slots = count + (appended ? rows : 0), slot = blockIdx.x * BLOCK + threadIdx.x;
  if (threadIdx.x < 4) tally[threadIdx.x] = 0;
  float4 box = make_float4(0.f, 0.f, 0.f, 0.f);
  bool exists = slot < slots;
  if (slot < count) box = boxes[per_image ? image * count + slot : slot];
  else if (exists && classes[image * rows + slot - count] > 0) box = truth_boxes[image * rows + slot - count];
  if (per_image) exists = exists && (box.x != 0.f || box.y != 0.f || box.z != 0.f || box.w != 0.f);
  if (frame) exists = exists && inside(box, frame[image], rules.straddle);

  int mine = label_of(comparable(box), tile, truth, best, rules);
  if (!exists) mine = 0;
  if (slot < slots) label[image * slots + slot] = (signed char)mine;
  int kind = mine < 0 ? 1 : 0;
  int key = sampling_rank(seed[image], draw.stream + kind, slot);
  bool listed = mine > 0 || (mine < 0 && key < draw.negatives_below);
  unsigned positives = __ballot_sync(ALL, mine > 0), negatives = __ballot_sync(ALL, mine < 0);
  __syncthreads();  // the tally is zero
  int place = listed ? atomicAdd(&tally[2 + kind], 1) : 0;
  if ((threadIdx.x & 31) == 0) {
    if (positives) atomicAdd(&tally[0], __popc(positives));
    if (negatives) atomicAdd(&tally[1], __popc(negatives));
  }
  __syncthreads();
  if (threadIdx.x < 4) {
    int total = tally[threadIdx.x];
    int start = total ? atomicAdd(&counts[image * 4 + threadIdx.x], total) : 0;
    if (threadIdx.x >= 2) base[threadIdx.x - 2] = start;
  }
  __syncthreads();
  if (listed && base[kind] + place < draw.capacity)
    lists[(image * 2 + kind) * draw.capacity + base[kind] + place] = (u64)key << 32 | (unsigned)slot;
}

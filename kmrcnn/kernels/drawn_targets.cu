// What the drawn boxes should say: the ground truth each belongs to, its deltas and class, and where its mask lies.
//
// Budget for S rows of an image with M objects: 20 M bytes read from the cache and 16 to 60 bytes written a row;
//   M IoUs a positive row, none for others; 1 launch, no atomics.
// Launch rule: a warp a row, 8 rows a block.
// Determinism: a maximum over pairs (IoU, row) that are all different, so it is the same in any order.

#define BLOCK 256
#define ALL 0xffffffffu

typedef unsigned long long u64;

struct Weights { float y, x, height, width; };

// Which object an anchor belongs to that an object has claimed; see claim_limits in kmrcnn/ops/matching.py.
struct Claims {
  const int *best;  // null: claims do not count
  float above, share;
};

// Ascending with claimed first, then IoU, then the earlier row.
__device__ __forceinline__ u64 preference(bool claimed, float iou, int row) {
  unsigned bits = __float_as_uint(iou + 0.f);  // -0 is equal to 0
  unsigned ascending = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return (u64)claimed << 63 | (u64)ascending << 31 | (0x7fffffffu - (unsigned)row);
}

// The row of ground truth a box belongs to; by all lanes of a warp.
__device__ __forceinline__ int owner(Box box, long long image, const int *classes, const float4 *truth, int rows, Claims claims) {
  u64 chosen = 0;
  for (int row = threadIdx.x & 31; row < rows; row += 32) {
    long long at = image * rows + row;
    int id = classes[at];
    float iou = id == 0 ? 0.f : box_iou(comparable(truth[at]), box);
    bool claimed = false;
    if (claims.best && id > 0) {
      float most = __int_as_float(claims.best[at]);
      claimed = most > claims.above && iou >= most * claims.share;
    }
    chosen = max(chosen, preference(claimed, id < 0 ? -iou : iou, row));
  }
#pragma unroll
  for (int step = 16; step; step >>= 1) chosen = max(chosen, __shfl_xor_sync(ALL, chosen, step));
  return 0x7fffffff - (int)(chosen & 0x7fffffffu);
}

// Shift and log size of one axis, times their weights; always finite.
__device__ __forceinline__ void encode(float start, float end, float to_start, float to_end, float shift_weight,
                                       float size_weight, float &shift, float &size) {
  float from = end - start, to = to_end - to_start;
  float center = start + 0.5f * from, to_center = to_start + 0.5f * to;
  shift = (from > 0.f ? (to_center - center) / from : 0.f) * shift_weight;
  size = logf(from > 0.f && to > 0.f ? to / from : 1.f) * size_weight;
}

// Rows (B, size) of index and match (1, -1, 0) to deltas (B, size, 4) and, unless rois is null, rois (B, size, 4),
// class_ids, owners and used (B, size). Boxes, their slots and `appended` as in label_boxes.
extern "C" __global__ void __launch_bounds__(BLOCK)
drawn_targets(const float4 *boxes, int count, bool per_image, const int *classes, const float4 *truth, int rows,
              Claims claims, const int *index, const int *match, int size, int total, Weights weights, bool all_used,
              float4 *deltas, float4 *rois, int *class_ids, int *owners, float *used) {
  int row = blockIdx.x * (BLOCK / 32) + threadIdx.x / 32;
  if (row >= total) return;
  long long image = row / size;
  int slot = index[row], state = match[row], object = 0;
  float4 box = make_float4(0.f, 0.f, 0.f, 0.f), delta = box;
  if (state != 0)
    box = slot >= count ? truth[image * rows + slot - count] : boxes[per_image ? image * count + slot : slot];
  if (state == 1) {
    object = owner(comparable(box), image, classes, truth, rows, claims);
    float4 to = truth[image * rows + object];
    encode(box.x, box.z, to.x, to.z, weights.y, weights.height, delta.x, delta.z);
    encode(box.y, box.w, to.y, to.w, weights.x, weights.width, delta.y, delta.w);
  }
  if (threadIdx.x & 31) return;
  deltas[row] = delta;
  if (!rois) return;
  rois[row] = box;
  class_ids[row] = state == 1 ? classes[image * rows + object] : 0;
  owners[row] = object;
  used[row] = all_used || state != 0 ? 1.f : 0.f;
}

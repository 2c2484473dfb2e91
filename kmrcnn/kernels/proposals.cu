// RPN scores and deltas to proposals: the best anchors of every image and level decoded, clipped, filtered for NMS, and
// what NMS keeps of the levels merged by score.
//
// Budget an image of A anchors, L levels, K survivors a level: 8 A bytes of probabilities in and 8 A of keys out, the
//   caller's top-k of the keys, 56 K L bytes to decode, 40 bytes a kept box; 3 launches besides top-k and NMS, no
//   atomics.
// Launch rule: proposal_keys a thread an anchor; proposal_boxes a thread a survivor, all images and levels in one
//   launch; proposal_merge a thread a box that NMS kept. The grid's y is the image, or image x level.
// Determinism: no result depends on the order of threads. Keys are unique, so any top-k of them is stable.

#define ALL 0xffffffffu
#define NOTHING (-9223372036854775807ll - 1)

// A key holds the score's ordered bits, as a signed integer, above the anchor's number turned over.
__device__ __forceinline__ float key_score(long long key) {
  return from_ordered_bits((unsigned)(key >> 32) ^ 0x80000000u);
}

// Descending keys: the better score first, then the lower anchor. NaN counts as -1, which is dropped later.
extern "C" __global__ void __launch_bounds__(256) proposal_keys(const T *probs, int anchors, long long *keys) {
  int anchor = blockIdx.x * 256 + threadIdx.x;
  if (anchor >= anchors) return;
  long long target = (long long)blockIdx.y * anchors + anchor;
  float score = to_float(probs[2 * target + 1]);
  unsigned bits = ordered_bits(score == score ? score : -1.f) ^ 0x80000000u;
  keys[target] = (long long)((unsigned long long)bits << 32 | ~(unsigned)anchor);
}

// NaN deltas make NaN boxes, as elsewhere: the limit of decode_box would turn them into huge ones.
__device__ __forceinline__ Box decode_anchor(const float *anchors, int anchor, const T *deltas, float4 weights,
                                             float max_log_scale) {
  float d[4];
  load_floats<4>(deltas, d);
  d[0] /= weights.x, d[1] /= weights.y, d[2] /= weights.z, d[3] /= weights.w;
  Box box = decode_box(load_box(anchors, anchor), d[0], d[1], d[2], d[3], max_log_scale);
  if (d[2] != d[2]) box.y1 = box.y2 = d[2];
  if (d[3] != d[3]) box.x1 = box.x2 = d[3];
  return box;
}

__device__ __forceinline__ float clip(float value, float low, float high) {
  return value == value ? fmaxf(fminf(value, high), low) : value;
}

// pixel: what a clipped box keeps at least, 0 or 1.
__device__ __forceinline__ Box clip_to_frame(Box box, Box frame, float pixel) {
  return {clip(box.y1, frame.y1, frame.y2 - pixel), clip(box.x1, frame.x1, frame.x2 - pixel),
          clip(box.y2, frame.y1 + pixel, frame.y2), clip(box.x2, frame.x1 + pixel, frame.x2)};
}

// keys: (images, levels, survivors), each level's best first, NOTHING where a level has fewer. boxes in the same
// layout; alive: a bit a box, two words for 64 of them, the input of nms_mask and nms_scan.
extern "C" __global__ void __launch_bounds__(256)
proposal_boxes(const long long *keys, const float *anchors, const T *deltas, const float *frames, int anchor_count,
               int levels, int survivors, float weight_y, float weight_x, float weight_h, float weight_w,
               float max_log_scale, float min_size, float pixel, float4 *boxes, unsigned *alive) {
  int place = blockIdx.x * 256 + threadIdx.x, problem = blockIdx.y, image = problem / levels;
  int words = (survivors + 63) / 64 * 2;
  long long target = (long long)problem * survivors + place;
  long long key = place < survivors ? keys[target] : NOTHING;
  bool usable = key != NOTHING && key_score(key) >= 0.f;
  Box box = {0.f, 0.f, 0.f, 0.f};
  if (usable) {
    int anchor = (int)~(unsigned)key;
    float4 weights = make_float4(weight_y, weight_x, weight_h, weight_w);
    const T *delta = deltas + 4 * ((long long)image * anchor_count + anchor);
    box = decode_anchor(anchors, anchor, delta, weights, max_log_scale);
    box = clip_to_frame(box, load_box(frames, image), pixel);
    float height = box.y2 - box.y1, width = box.x2 - box.x1;
    if (min_size > 0.f && height == height && width == width) usable = height >= min_size && width >= min_size;
  }
  unsigned vote = __ballot_sync(ALL, usable);
  if (threadIdx.x % 32 == 0 && place / 32 < words) alive[(long long)problem * words + place / 32] = vote;
  if (place < survivors) boxes[target] = make_float4(box.y1, box.x1, box.y2, box.x2);
}

struct Level {
  const long long *keys;
  const int *keep;  // places of its kept boxes, best first, then -1
};

// How many of a level's kept boxes are better than a score, or as good where `ties` is set.
__device__ __forceinline__ int better(Level level, int limit, int score, bool ties) {
  int low = 0, high = limit;
  while (low < high) {
    int middle = (low + high) / 2, place = level.keep[middle];
    int theirs = place < 0 ? 0 : (int)(level.keys[place] >> 32);
    if (place >= 0 && (theirs > score || (ties && theirs == score))) low = middle + 1;
    else high = middle;
  }
  return low;
}

// keep: (images, levels, limit); proposals (images, count, 4), zeroed. The place of a box is its rank in its level plus
// how many are better in the others; of equal scores the one of the lower level goes first.
extern "C" __global__ void __launch_bounds__(256)
proposal_merge(const long long *keys, const int *keep, const float4 *boxes, int levels, int survivors, int limit,
               int count, float4 *proposals) {
  int kept = blockIdx.x * 256 + threadIdx.x, image = blockIdx.y, level = kept / limit, rank = kept % limit;
  if (level >= levels) return;
  keys += (long long)image * levels * survivors;
  keep += (long long)image * levels * limit;
  int place = keep[kept], position = rank;
  if (place < 0) return;
  int score = (int)(keys[(long long)level * survivors + place] >> 32);
  for (int other = 0; other < levels && position < count; other++) {
    Level rival = {keys + (long long)other * survivors, keep + other * limit};
    if (other != level) position += better(rival, limit, score, other < level);
  }
  if (position < count)
    proposals[(long long)image * count + position] = boxes[((long long)image * levels + level) * survivors + place];
}

// Soft-NMS (Bodla 2017): boxes that overlap a chosen one lose score instead of being dropped.
//
// Budget for N boxes a problem and K results: K passes over 20 N bytes, which stay in the caches; one launch, one block
//   a problem, no atomics, one barrier a result.
// Launch rule: a block of 512 a problem; a thread owns every 512th box, so its scores need no barrier.
// Determinism: no result depends on the order of threads; of equal scores the lowest index is chosen.

#define THREADS 512
#define ALL 0xffffffffu

typedef unsigned long long u64;

// Descending by score, then ascending by index; larger than 0 for every score.
__device__ __forceinline__ u64 rank_key(float score, int index) {
  return (u64)ordered_bits(score) << 32 | ~(unsigned)index;
}

__device__ __forceinline__ u64 best_of_block(u64 best, u64 *warps) {
  for (int other = 16; other > 0; other /= 2) {
    u64 theirs = __shfl_xor_sync(ALL, best, other);
    best = theirs > best ? theirs : best;
  }
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = best;
  __syncthreads();
  for (int i = 0; i < THREADS / 32; i++) best = warps[i] > best ? warps[i] : best;
  return best;
}

// A box with a NaN overlaps nothing, like one without area.
__device__ __forceinline__ Box load_whole(const float *corners, int index) {
  Box box = load_box(corners, index);
  return has_nan(box) ? Box{0.f, 0.f, 0.f, 0.f} : box;
}

// What is left of the score of a box with this IoU with the chosen one; sigma 0: linear.
__device__ __forceinline__ float weight_of(float iou, float threshold, float sigma) {
  if (sigma > 0.f) return expf(-(iou * iou) / sigma);
  return iou > threshold ? 1.f - iou : 1.f;
}

// current: (problems, count) scratch for the scores as they fall.
extern "C" __global__ void __launch_bounds__(THREADS)
soft_nms(const float *corners, const float *scores, const int *classes, int count, int limit, float threshold,
         float sigma, float min_score, float *current, int *keep, float *kept_scores) {
  __shared__ u64 warps[2][THREADS / 32];  // two, so that the next search may begin while the last is being read
  long long first = (long long)blockIdx.x * count;
  corners += 4 * first, scores += first, current += first;
  if (classes) classes += first;
  keep += (long long)blockIdx.x * limit, kept_scores += (long long)blockIdx.x * limit;
  const float lost = __int_as_float(0xff800000);
  u64 best = 0;
  for (int i = threadIdx.x; i < count; i += THREADS) {
    float score = scores[i];
    current[i] = score;
    if (score > lost && score >= min_score) best = max(best, rank_key(score, i));
  }
  int slot = 0;
  for (; slot < limit; slot++) {
    best = best_of_block(best, warps[slot & 1]);
    if (!best) break;
    int index = (int)~(unsigned)best, kind = classes ? classes[index] : 0;
    if (threadIdx.x == 0) keep[slot] = index, kept_scores[slot] = from_ordered_bits((unsigned)(best >> 32));
    Box chosen = load_whole(corners, index);
    float area = box_area(chosen);
    best = 0;
    for (int i = threadIdx.x; i < count; i += THREADS) {
      float score = i == index ? lost : current[i];
      if (!(score > lost && score >= min_score)) { current[i] = lost; continue; }
      if (!classes || classes[i] == kind) {
        Box box = load_whole(corners, i);
        score *= weight_of(box_iou(chosen, box, area, box_area(box)), threshold, sigma);
        current[i] = score;
      }
      if (score >= min_score) best = max(best, rank_key(score, i));
    }
  }
  for (int i = slot + threadIdx.x; i < limit; i += THREADS) keep[i] = -1, kept_scores[i] = 0.f;
}

// Gradient of ROIAlign over a feature pyramid with respect to the maps, gathered: deterministic.
//
// Budget   reads all boxes of an image once a tile of 4x4 cells (from the L2), the output's gradient where a tile meets
//          a ROI, and writes every cell of the maps once, in their own type: 91 MB an image of 1024x1024 and 256
//          float32 channels, half of that in bfloat16. No atomics, nothing to zero before. One launch.
// Launch   grid (tiles of all levels and images, chunks of channels), block (32 or 64, TILE): threads along channels, one
//          row of the tile each. Dynamic shared memory 4 * BATCH * tile_floats(how).
// Order    ROIs are added in order of their index, bins in order: the same bits in every run.
#include "roi_geometry.cuh"

#define BATCH 8  // ROIs whose weights are ready at once
#define MOST_WARPS 8

__device__ __forceinline__ bool meets(const Pooling &how, Box box, int level, int top, int left) {
  if (level_of(how, box) != level) return false;
  Axis y, x;
  axes_of(how, box, level, y, x);
  int first, last;
  reach(y, first, last);
  if (first >= top + TILE || last < top) return false;
  reach(x, first, last);
  return first < left + TILE && last >= left;
}

// Appends the ROIs chosen by each thread to the list in the order of threads; returns how many there are.
__device__ int list_chosen(bool chosen, int roi, int thread, int threads, int *list, int *warp_counts) {
  unsigned votes = __ballot_sync(~0u, chosen);
  int warp = thread / 32, before = __popc(votes & ((1u << thread % 32) - 1)), total = 0;
  if (thread % 32 == 0) warp_counts[warp] = __popc(votes);
  __syncthreads();
  for (int i = 0; i < threads / 32; i++) {
    if (i < warp) before += warp_counts[i];
    total += warp_counts[i];
  }
  if (chosen) list[before] = roi;
  __syncthreads();
  return total;
}

extern "C" __global__ void __launch_bounds__(256, V == 8 ? 2 : 3)
roi_align_gather(const Pooling how, const float *__restrict__ boxes, const T *__restrict__ gradient) {
  extern __shared__ float memory[];
  __shared__ int list[32 * MOST_WARPS], warp_counts[MOST_WARPS];
  int thread = threadIdx.y * blockDim.x + threadIdx.x, threads = blockDim.x * blockDim.y, row = threadIdx.y;
  int channel = (blockIdx.y * blockDim.x + threadIdx.x) * V;

  int level = 0, index = blockIdx.x, down, across;
  for (;; level++) {
    down = (how.height[level] + TILE - 1) / TILE, across = (how.width[level] + TILE - 1) / TILE;
    if (index < how.images * down * across) break;
    index -= how.images * down * across;
  }
  int image = index / (down * across), height = how.height[level], width = how.width[level];
  int top = index / across % down * TILE, left = index % across * TILE;

  float sum[TILE][V] = {};
  for (int base = 0; base < how.rois; base += threads) {
    bool chosen = base + thread < how.rois
        && meets(how, load_box(boxes, (long long)image * how.rois + base + thread), level, top, left);
    int listed = list_chosen(chosen, image * how.rois + base + thread, thread, threads, list, warp_counts);
    for (int first = 0; first < listed; first += BATCH) {
      int batch = min(BATCH, listed - first);
      for (int i = 0; i < batch; i++) {
        Axis y, x;
        axes_of(how, load_box(boxes, list[first + i]), level, y, x);
        fill_weights(tile_weights(how, memory + i * tile_floats(how)), y, x, top, left, thread, threads);
      }
      __syncthreads();
      if (thread < batch * (TILE + 1))
        find_bounds(how, tile_weights(how, memory + thread / (TILE + 1) * tile_floats(how)), thread % (TILE + 1));
      __syncthreads();
      for (int i = 0; i < batch && channel < how.channels; i++)
        add_row(how, tile_weights(how, memory + i * tile_floats(how)), row,
                gradient + (long long)list[first + i] * how.bins_y * how.bins_x * how.channels + channel, sum);
      __syncthreads();  // before weights and list are written again
    }
  }

  if (channel >= how.channels || top + row >= height) return;
  T *map = static_cast<T *>(how.map[level]) + ((long long)(image * height + top + row) * width + left) * how.channels;
#pragma unroll
  for (int column = 0; column < TILE; column++)
    if (left + column < width) store_floats<V>(map + (long long)column * how.channels + channel, sum[column]);
}

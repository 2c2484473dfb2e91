// Gradient of ROIAlign over a feature pyramid with respect to the maps, summed by float atomics.
//
// Budget   reads the gradient of the output once from memory; a ROI adds to each cell it touches once a channel (about
//          225 cells where adding sample by sample takes 784): 512 ROIs of 7x7x256 add 118 MB, in 16-byte atomics from
//          sm_90 on and of 4 bytes before. The float32 gradient maps are zeroed before. One launch.
// Launch   grid (images * rois, splits, chunks of channels), block (32 or 64, TILE): threads along channels, one row of a
//          tile each; split s takes the ROI's tiles s, s + splits, ... Dynamic shared memory 4 * tile_floats(how).
// Order    of the atomics is open, so sums of several ROIs may differ in the last bits from run to run;
//          roi_align_gather.cu is the deterministic form.
#include "roi_geometry.cuh"

__device__ __forceinline__ void add_floats(float *address, const float (&values)[V]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if constexpr (V % 4 == 0) {
#pragma unroll
    for (int v = 0; v < V; v += 4)
      asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};"
                   ::"l"(address + v), "f"(values[v]), "f"(values[v + 1]), "f"(values[v + 2]), "f"(values[v + 3])
                   : "memory");
  } else
#endif
  {
#pragma unroll
    for (int v = 0; v < V; v++) atomicAdd(address + v, values[v]);
  }
}

extern "C" __global__ void __launch_bounds__(256, V == 8 ? 2 : 3)
roi_align_scatter(const Pooling how, const float *__restrict__ boxes, const T *__restrict__ gradient) {
  extern __shared__ float memory[];
  TileWeights tile = tile_weights(how, memory);
  int roi = blockIdx.x, image = roi / how.rois, row = threadIdx.y;
  int thread = threadIdx.y * blockDim.x + threadIdx.x, threads = blockDim.x * blockDim.y;
  int channel = (blockIdx.z * blockDim.x + threadIdx.x) * V;
  gradient += (long long)roi * how.bins_y * how.bins_x * how.channels + channel;

  Box box = load_box(boxes, roi);
  int level = level_of(how, box), width = how.width[level], height = how.height[level];
  Axis y, x;
  axes_of(how, box, level, y, x);
  int top, bottom, left, right;
  reach(y, top, bottom);
  reach(x, left, right);
  if (top > bottom || left > right) return;  // the whole block does
  float *map = static_cast<float *>(how.map[level]) + (long long)image * height * width * how.channels + channel;

  int across = (right - left) / TILE + 1, tiles = ((bottom - top) / TILE + 1) * across;
  for (int i = blockIdx.y; i < tiles; i += gridDim.y) {
    int tile_top = top + i / across * TILE, tile_left = left + i % across * TILE;
    __syncthreads();  // until the last tile's weights are no longer read
    fill_weights(tile, y, x, tile_top, tile_left, thread, threads);
    __syncthreads();
    if (thread <= TILE) find_bounds(how, tile, thread);
    __syncthreads();
    float sum[TILE][V] = {};
    if (channel >= how.channels || tile_top + row >= height) continue;
    if (!add_row(how, tile, row, gradient, sum)) continue;
#pragma unroll
    for (int column = 0; column < TILE; column++)
      if (tile_left + column < width)
        add_floats(map + (long long)((tile_top + row) * width + tile_left + column) * how.channels, sum[column]);
  }
}

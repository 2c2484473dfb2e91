// ROIAlign over a feature pyramid, forward: all images, ROIs and levels in one launch.
//
// Budget   reads every box once a bin row and the cells under each ROI, writes the output once: 512 ROIs of 7x7x256 in
//          bfloat16 move 12.8 MB out and about 46 MB in. One launch, no atomics, no synchronisation.
// Launch   grid (images * rois * bins_y), up to 256 threads; dynamic shared memory for the taps of one row of bins:
//          8 * (2 * most_y + 2 * bins_x * most_x) + 4 * (bins_x + 1) bytes. T: element type. V: channels an access,
//          16 bytes where the channels and addresses allow it, else 1.
// Order    each output is summed by one thread in a fixed order: deterministic.
#include "roi_geometry.cuh"

struct Tap { int offset; float weight; };

// The cells that one bin's samples touch on one axis, equal ones merged. Samples are in order, so an equal cell is
// one of the last two. Offsets are in elements.
__device__ int bin_taps(const Axis &axis, int bin, int stride, Tap *taps) {
  int count = 0;
  for (int sample = 0; sample < axis.samples; sample++) {
    int low;
    float fraction;
    if (!locate(axis, bin, sample, low, fraction)) continue;
    for (int next = 0; next < 2; next++) {
      float weight = (next ? fraction : 1.f - fraction) / axis.divisor;
      int offset = (low + next) * stride;
      if (next && fraction == 0.f) break;  // also keeps the cell beyond the last one from being read
      if (count > 0 && taps[count - 1].offset == offset) taps[count - 1].weight += weight;
      else if (count > 1 && taps[count - 2].offset == offset) taps[count - 2].weight += weight;
      else taps[count++] = {offset, weight};
    }
  }
  return count;
}

extern "C" __global__ void __launch_bounds__(256, 4)
roi_align_forward(const Pooling how, const float *__restrict__ boxes, T *__restrict__ out) {
  extern __shared__ Tap taps[];
  int row = blockIdx.x % how.bins_y, roi = blockIdx.x / how.bins_y, image = roi / how.rois;
  Tap *columns = taps + 2 * how.most_y;
  int *counts = reinterpret_cast<int *>(columns + 2 * how.most_x * how.bins_x);

  Box box = load_box(boxes, roi);
  int level = level_of(how, box), width = how.width[level];
  {
    Axis y, x;
    axes_of(how, box, level, y, x);
    for (int i = threadIdx.x; i <= how.bins_x; i += blockDim.x)
      counts[i] = i == how.bins_x ? bin_taps(y, row, width * how.channels, taps)
                                  : bin_taps(x, i, how.channels, columns + 2 * how.most_x * i);
  }
  __syncthreads();

  const T *map = static_cast<const T *>(how.map[level]) + (long long)image * how.height[level] * width * how.channels;
  int lanes = how.channels / V, rows = counts[how.bins_x];
  for (int work = threadIdx.x; work < how.bins_x * lanes; work += blockDim.x) {
    int bin = work / lanes, channel = (work - bin * lanes) * V;
    const Tap *across = columns + 2 * how.most_x * bin;
    int count = counts[bin];
    float sum[V] = {};
    for (int i = 0; i < rows; i++) {
      const T *line = map + taps[i].offset + channel;
#pragma unroll 4
      for (int j = 0; j < count; j++) {
        float values[V], weight = taps[i].weight * across[j].weight;
        load_floats<V>(line + across[j].offset, values);
#pragma unroll
        for (int v = 0; v < V; v++) sum[v] = fmaf(weight, values[v], sum[v]);
      }
    }
    store_floats<V>(out + ((long long)blockIdx.x * how.bins_x + bin) * how.channels + channel, sum);
  }
}

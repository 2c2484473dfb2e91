// Where ROIAlign samples a feature map: the numerics of kmrcnn/ops/roi_align.py and bilinear.py. Shared by the forward
// and both backward files.

#define MOST_LEVELS 8
#define TILE 4  // cells a side of the tiles that gradients are summed in

enum Mode { ALIGNED, LEGACY, CROP_AND_RESIZE };

// Mirrored by _POOLING in roi_align.py.
struct Pooling {
  void *map[MOST_LEVELS];        // NHWC
  int height[MOST_LEVELS], width[MOST_LEVELS];
  float scale[MOST_LEVELS];      // cells a pixel
  float limit[MOST_LEVELS];      // least area, in pixels, of a box for this level; the first is not used
  int levels, images, rois;      // rois: of each image
  int channels, bins_y, bins_x;
  int mode, sampling_ratio;      // 0: adaptive
  int most_y, most_x;            // samples a bin, at most
  float end_shift;               // taken from y2 and x2 once the level is chosen
  float divisor_y, divisor_x;    // pixels that are 1 in the normalised boxes of CROP_AND_RESIZE; 1 for the others
};

struct Axis {
  float start, step, divisor;    // step: cells a bin; CROP_AND_RESIZE: cells from the first to the last sample
  int bins, samples, extent;
  bool grid;                     // CROP_AND_RESIZE
};

// NaN counts as 0 and infinities as +-1e7, so that they may become an index.
__device__ __forceinline__ float finite(float x) { return x == x ? fminf(fmaxf(x, -1e7f), 1e7f) : 0.f; }

__device__ __forceinline__ int level_of(const Pooling &how, Box box) {
  float area = box_area(box);
  int level = 0;
  for (int k = 1; k < how.levels; k++) level += area >= how.limit[k];
  return level;
}

__device__ __forceinline__ Axis make_axis(const Pooling &how, float start, float end, float divisor, float scale,
                                          int extent, int bins, int most) {
  Axis axis = {0.f, 0.f, 1.f, bins, 1, extent, how.mode == CROP_AND_RESIZE};
  start = finite(start / divisor), end = finite((end - how.end_shift) / divisor);
  if (axis.grid) {
    axis.start = start * (extent - 1), axis.step = (end - start) * (extent - 1);
    return axis;
  }
  float offset = how.mode == ALIGNED ? 0.5f : 0.f;
  axis.start = start * scale - offset;
  float size = end * scale - offset - axis.start;
  if (how.mode == LEGACY) size = fmaxf(size, 1.f);
  axis.step = size / bins;
  axis.samples = how.sampling_ratio;
  if (how.sampling_ratio == 0) {
    float samples = floorf(axis.step);
    samples += samples * bins < size;  // not ceilf: a rounded quotient must not add a sample
    axis.samples = (int)fminf(fmaxf(samples, 0.f), (float)most);
  }
  axis.divisor = (float)max(axis.samples, 1);
  return axis;
}

__device__ __forceinline__ void axes_of(const Pooling &how, Box box, int level, Axis &y, Axis &x) {
  y = make_axis(how, box.y1, box.y2, how.divisor_y, how.scale[level], how.height[level], how.bins_y, how.most_y);
  x = make_axis(how, box.x1, box.x2, how.divisor_x, how.scale[level], how.width[level], how.bins_x, how.most_x);
}

__device__ __forceinline__ float position(const Axis &axis, int bin, int sample) {
  if (!axis.grid) return axis.start + bin * axis.step + (sample + 0.5f) * (axis.step / axis.divisor);
  float fraction = axis.bins == 1 ? 0.5f : bin / (float)(axis.bins - 1);
  return axis.start + fraction * axis.step;
}

// The cell at or before a sample and the share of the next one. False: the sample lies outside and counts as 0.
__device__ __forceinline__ bool locate(const Axis &axis, int bin, int sample, int &low, float &fraction) {
  float place = position(axis, bin, sample), last = (float)(axis.extent - 1);
  // A crop's sample that misses the border by rounding only counts as on it.
  bool inside = axis.grid ? place >= -1e-3f && place <= last + 1e-3f : place >= -1.f && place <= last + 1.f;
  place = fminf(fmaxf(place, 0.f), last);
  low = (int)place;
  fraction = place - low;
  return inside;
}

// First and last cell that samples of the axis can reach; first > last: none.
__device__ __forceinline__ void reach(const Axis &axis, int &first, int &last) {
  first = 0, last = -1;
  if (axis.samples == 0) return;
  float one = position(axis, 0, 0), other = position(axis, axis.bins - 1, axis.samples - 1);
  float low = fminf(one, other), high = fmaxf(one, other);
  if (high < -1.f || low > (float)axis.extent) return;
  first = (int)fminf(fmaxf(low, 0.f), (float)(axis.extent - 1));
  last = min((int)fmaxf(high, 0.f) + 1, axis.extent - 1);
}

// ---- gradients, a tile of cells at a time ---------------------------------------------------------------------------
//
// The gradient of a cell is the sum over bins (p, q) of row[p] * column[q] * gradient[p][q], with the weights of p's
// samples on the cell's row and of q's on its column. So each ROI's share of a cell is summed before it leaves the
// registers, and a bin is read once for all TILE columns.

struct TileWeights {
  float *rows, *columns;         // TILE x bins_y and TILE x bins_x
  int *bounds;                   // first and end of the bins with weight: of each row, then of all columns together
};
#define BOUNDS (2 * TILE + 2)

__device__ __forceinline__ int tile_floats(const Pooling &how) { return TILE * (how.bins_y + how.bins_x) + BOUNDS; }

__device__ __forceinline__ TileWeights tile_weights(const Pooling &how, float *memory) {
  float *columns = memory + TILE * how.bins_y;
  return {memory, columns, reinterpret_cast<int *>(columns + TILE * how.bins_x)};
}

__device__ __forceinline__ float weight_on(const Axis &axis, int bin, int cell) {
  float weight = 0.f, fraction;
  int low;
#pragma unroll 1
  for (int sample = 0; sample < axis.samples; sample++)
    if (locate(axis, bin, sample, low, fraction))
      weight += low == cell ? 1.f - fraction : low + 1 == cell ? fraction : 0.f;
  return weight / axis.divisor;
}

// Thread `thread` of `threads` fills its part of the weights of the tile at (top, left).
__device__ __forceinline__ void fill_weights(const TileWeights &tile, const Axis &y, const Axis &x, int top, int left,
                                             int thread, int threads) {
  int rows = TILE * y.bins, all = rows + TILE * x.bins;
  for (int i = thread; i < all; i += threads) {
    Axis axis = i < rows ? y : x;
    int place = i < rows ? i : i - rows;
    float weight = weight_on(axis, place % axis.bins, (i < rows ? top : left) + place / axis.bins);
    (i < rows ? tile.rows : tile.columns)[place] = weight;
  }
}

// After a barrier: `place` in [0, TILE] finds the bounds of one row, or of the columns.
__device__ __forceinline__ void find_bounds(const Pooling &how, const TileWeights &tile, int place) {
  bool of_row = place < TILE;
  int bins = of_row ? how.bins_y : how.bins_x, first = bins, end = 0;
  const float *weights = of_row ? tile.rows + place * bins : tile.columns;
#pragma unroll 1
  for (int i = 0; i < (of_row ? bins : TILE * bins); i++)
    if (weights[i] != 0.f) first = min(first, i % bins), end = max(end, i % bins + 1);
  tile.bounds[2 * place] = first, tile.bounds[2 * place + 1] = end;
}

// After another barrier: adds to V channels of the TILE cells of one row; gradient points to the ROI's channels.
__device__ __forceinline__ bool add_row(const Pooling &how, const TileWeights &tile, int row, const T *gradient,
                                        float (&sum)[TILE][V]) {
  const int *bounds = tile.bounds + 2 * row, *across = tile.bounds + 2 * TILE;
  for (int p = bounds[0]; p < bounds[1]; p++) {
    float weight = tile.rows[row * how.bins_y + p];
#pragma unroll 2
    for (int q = across[0]; q < across[1]; q++) {
      float values[V];
      load_floats<V>(gradient + (long long)(p * how.bins_x + q) * how.channels, values);
#pragma unroll
      for (int column = 0; column < TILE; column++) {
        float share = weight * tile.columns[column * how.bins_x + q];
#pragma unroll
        for (int v = 0; v < V; v++) sum[column][v] = fmaf(share, values[v], sum[column][v]);
      }
    }
  }
  return bounds[0] < bounds[1] && across[0] < across[1];
}

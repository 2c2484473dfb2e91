// The mask targets of the leading rows of each image: ground-truth masks cut out by ROIs.
//
// crop_targets samples one point a cell and rounds (Matterport); align_targets averages over each cell by adaptive
// ROIAlign in its legacy form, which is separable: columns of the mask first, then what lies between them.
//
// Budget for P rows of h x w: 4 P h w bytes out. crop_targets reads 4 values a cell of a positive row in place, without
//   a transposed copy of the masks; align_targets every pixel of the ROI up to four times, from the cache after the
//   first. 1 launch, no atomics.
// Launch rule: crop_targets a block of 256 for 256 cells of a row, grid (., P, B); align_targets a block of 128 a row
//   of cells, grid (h, P, B), with 4 bytes of shared memory for each column of the mask.
// Determinism: every sum has one order. Values are MASK, of masks (B, H, W, M).

#define CROP_BLOCK 256
#define ALIGN_BLOCK 128
#define BORDER 1e-3f  // as in kmrcnn/ops/bilinear.py

struct Masks {
  const MASK *values;
  int height, width, count;
};

// Pixel (0, 0) of a mask; the next in its row lies `count` further.
__device__ __forceinline__ const MASK *mask_of(Masks masks, long long image, int object) {
  return masks.values + image * masks.height * masks.width * masks.count + object;
}

struct Taps {
  int low, high;
  float low_weight, high_weight;
};

// Cells next to a position, cell centres at whole numbers; positions outside are moved to the border.
__device__ __forceinline__ Taps taps_at(float position, int extent, bool counts) {
  float last = (float)(extent - 1), inside = fminf(fmaxf(position, 0.f), last), low = floorf(inside);
  float fraction = inside - low, weight = counts ? 1.f : 0.f;
  return {(int)low, (int)fminf(low + 1.f, last), weight * (1.f - fraction), weight * fraction};
}

// Sample `number` of `bins` from border to border of a box in a frame; both in the same unit.
__device__ __forceinline__ Taps grid_taps(float start, float end, float origin, float border, int extent, int number,
                                          int bins) {
  float side = fmaxf(border - origin, 1e-6f), last = (float)(extent - 1);
  start = (start - origin) / side, end = (end - origin) / side;
  float fraction = bins == 1 ? 0.5f : (float)number / (float)(bins - 1);
  float position = start * last + fraction * ((end - start) * last);
  return taps_at(position, extent, position >= -BORDER && position <= last + BORDER);
}

// rois, match, owners (B, size, .) as drawn_targets and draw_rows left them; targets (B, P, out_height, out_width).
// frame (B, 4) of what the masks cover; null: each covers the box of its object.
extern "C" __global__ void __launch_bounds__(CROP_BLOCK)
crop_targets(Masks masks, const float4 *rois, const int *match, const int *owners, int size, const float4 *truth,
             const float4 *frame, int out_height, int out_width, float *targets) {
  int cell = blockIdx.x * CROP_BLOCK + threadIdx.x, cells = out_height * out_width;
  if (cell >= cells) return;
  long long image = blockIdx.z, row = image * size + blockIdx.y;
  float value = 0.f;
  if (match[row] == 1) {
    int object = owners[row];
    float4 roi = rois[row], border = frame ? frame[image] : truth[image * masks.count + object];
    Taps y = grid_taps(roi.x, roi.z, border.x, border.z, masks.height, cell / out_width, out_height);
    Taps x = grid_taps(roi.y, roi.w, border.y, border.w, masks.width, cell % out_width, out_width);
    const MASK *mask = mask_of(masks, image, object);
    long long upper = (long long)y.low * masks.width, lower = (long long)y.high * masks.width, step = masks.count;
    value = (float)mask[(upper + x.low) * step] * (y.low_weight * x.low_weight);
    value += (float)mask[(upper + x.high) * step] * (y.low_weight * x.high_weight);
    value += (float)mask[(lower + x.low) * step] * (y.high_weight * x.low_weight);
    value += (float)mask[(lower + x.high) * step] * (y.high_weight * x.high_weight);
    value = rintf(value);
  }
  targets[(image * gridDim.y + blockIdx.y) * cells + cell] = value;
}

// The samples of one axis of a ROI, cell centres at whole numbers: `samples` in each of its bins.
struct Axis {
  float start, bin, step;
  int samples, extent;
};

__device__ __forceinline__ Axis axis_of(float start, float end, int bins, int extent) {
  float size = fmaxf(end - start, 1.f), bin = size / (float)bins, samples = floorf(bin);
  if (samples * (float)bins < size) samples += 1.f;
  return {start, bin, bin / samples, (int)samples, extent};
}

__device__ __forceinline__ Taps sample(const Axis &axis, int bin, int number) {
  float position = axis.start + axis.bin * (float)bin + 0.5f * axis.step + (float)number * axis.step;
  return taps_at(position, axis.extent, position >= -1.f && position <= (float)axis.extent);
}

// As crop_targets, of masks that cover the frame, which lacks the same of half-open pixels as ROIs do.
extern "C" __global__ void __launch_bounds__(ALIGN_BLOCK)
align_targets(Masks masks, const float4 *rois, const int *match, const int *owners, int size, const float4 *frame,
              int out_height, int out_width, float *targets) {
  extern __shared__ float columns[];  // share of the bin row that the mask covers in each column
  long long image = blockIdx.z, row = image * size + blockIdx.y;
  targets += ((image * gridDim.y + blockIdx.y) * out_height + blockIdx.x) * out_width;
  if (match[row] != 1) {  // all threads alike
    for (int bin = threadIdx.x; bin < out_width; bin += ALIGN_BLOCK) targets[bin] = 0.f;
    return;
  }
  float4 roi = rois[row], whole = frame[image];
  Axis y = axis_of(roi.x, roi.z + ((float)masks.height - (whole.z - whole.x)), out_height, masks.height);
  Axis x = axis_of(roi.y, roi.w + ((float)masks.width - (whole.w - whole.y)), out_width, masks.width);
  const MASK *mask = mask_of(masks, image, owners[row]);
  int first = sample(x, 0, 0).low, last = sample(x, out_width - 1, x.samples - 1).high;
  for (int column = first + threadIdx.x; column <= last; column += ALIGN_BLOCK) {
    float total = 0.f;
    for (int number = 0; number < y.samples; number++) {
      Taps taps = sample(y, blockIdx.x, number);
      total += taps.low_weight * (float)mask[((long long)taps.low * masks.width + column) * masks.count] +
               taps.high_weight * (float)mask[((long long)taps.high * masks.width + column) * masks.count];
    }
    columns[column] = total / (float)y.samples;
  }
  __syncthreads();
  for (int bin = threadIdx.x; bin < out_width; bin += ALIGN_BLOCK) {
    float total = 0.f;
    for (int number = 0; number < x.samples; number++) {
      Taps taps = sample(x, bin, number);
      total += taps.low_weight * columns[taps.low] + taps.high_weight * columns[taps.high];
    }
    targets[bin] = fminf(total / (float)x.samples, 1.f);
  }
}

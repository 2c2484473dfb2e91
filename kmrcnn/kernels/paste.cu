// Soft masks into the image: the whole stack as bool, or COCO's run lengths of each mask.
//
// masks (N, h, w) of T, boxes (N, 4) float32 pixels y1x1y2x2. The rules (see kmrcnn.ops.paste_masks):
//   ROUNDED  box in whole pixels, the mask's border goes on       inside where value >= threshold
//   RINGED   a ring of zeros around mask and box, whole pixels    inside where value >  threshold
//   EXACT    the box as it is, zeros beyond the mask              inside where value >= threshold
//
// Budget: `paste_bool` writes N*H*W bytes once, in 16-byte stores, and does arithmetic (four reads of a mask that
//   stays in L1) only in the box: 105 MB for 100 masks of 1024 x 1024, 25 us at 4.2 TB/s. The two run-length kernels
//   read the masks, write 8 bytes a column of the box and 4 * max_runs bytes a mask: 2 MB, each pixel of a box
//   computed twice. No atomics, no shared memory; 1 launch for bool, 2 for run lengths.
// Launch: paste_bool: (tiles of 16 * PER_THREAD * 256 bytes, N) blocks of 256. rle_count, rle_write: 8 warps a block,
//   a warp for COLUMNS columns of the box, (tiles of columns, N) blocks. Any N: blocks go on in steps of gridDim.y.
// Determinism: all three are, and give a pixel the same value to the last bit.

#define ROUNDED 0
#define RINGED 1
#define EXACT 2
#define PER_THREAD 8
#define COLUMNS 4
#define ALL 0xffffffffu

struct Axis {
  float start, end, scale;
  int cells, first, last;  // pixels first <= p < last may lie inside
};

struct Frame {
  Axis y, x;
  float threshold;
  int rule;
};

struct Tap {
  int low;  // this cell and the next
  float weight, next_weight;
  bool inside;
};

__device__ int clamped(float x, int most) { return (int)fminf(fmaxf(x, 0.0f), (float)most); }

__device__ Axis axis_of(float start, float end, int cells, int pixels, int rule, float threshold) {
  if (rule == ROUNDED) {
    start = rintf(start);
    end = rintf(end);
  }
  if (rule == RINGED) {
    cells += 2;
    const float middle = 0.5f * (start + end);
    const float half = 0.5f * (end - start) * ((float)cells / (float)(cells - 2));
    start = truncf(middle - half);
    end = fmaxf(truncf(middle + half), start) + 1.0f;
  }
  const float size = end - start;
  Axis axis = {start, end, (float)cells / size, cells, 0, 0};
  if (!(size > 0.0f)) return axis;
  // Bilinear values reach half a cell beyond the box; where 0 is enough to be inside there is no border at all.
  const float reach = rule == EXACT ? 0.5f * size / cells + 1.0f : 0.0f;
  const bool everywhere = rule == EXACT && threshold <= 0.0f;
  axis.first = everywhere ? 0 : clamped(floorf(start - reach), pixels);
  axis.last = everywhere ? pixels : clamped(ceilf(end + reach), pixels);
  return axis;
}

__device__ Frame frame_of(const float* box, int h, int w, int height, int width, float threshold, int rule) {
  Frame frame = {axis_of(box[0], box[2], h, height, rule, threshold),
                   axis_of(box[1], box[3], w, width, rule, threshold), threshold, rule};
  if (frame.y.first >= frame.y.last) frame.x.last = frame.x.first;
  return frame;
}

__device__ Tap tap_of(const Axis& axis, int pixel, int rule) {
  const float centre = (float)pixel + 0.5f;
  float position = (centre - axis.start) * axis.scale - 0.5f;
  bool inside = position == position;
  if (rule != EXACT) {
    inside = inside && centre > axis.start && centre < axis.end;
    position = fminf(fmaxf(position, 0.0f), (float)(axis.cells - 1));
  }
  const float low = fminf(fmaxf(floorf(position), -2.0f), (float)axis.cells);
  return {(int)low, fmaxf(1.0f - fabsf(position - low), 0.0f), fmaxf(1.0f - fabsf(position - (low + 1.0f)), 0.0f),
      inside};
}

__device__ float cell_at(const T* mask, const Frame& frame, int y, int x) {
  const int ring = frame.rule == RINGED ? 1 : 0;
  const int h = frame.y.cells - 2 * ring, w = frame.x.cells - 2 * ring;
  y -= ring;
  x -= ring;
  return y >= 0 && y < h && x >= 0 && x < w ? to_float(mask[y * w + x]) : 0.0f;
}

__device__ float blend(float a, float weight, float b, float next_weight) {
  return weight * a + next_weight * b;
}

__device__ bool is_inside(const T* mask, const Frame& frame, const Tap& y, const Tap& x) {
  if (!(y.inside && x.inside)) return false;
  const float left = blend(cell_at(mask, frame, y.low, x.low), y.weight,
                             cell_at(mask, frame, y.low + 1, x.low), y.next_weight);
  const float right = blend(cell_at(mask, frame, y.low, x.low + 1), y.weight,
                              cell_at(mask, frame, y.low + 1, x.low + 1), y.next_weight);
  const float value = blend(left, x.weight, right, x.next_weight);
  return frame.rule == RINGED ? value > frame.threshold : value >= frame.threshold;
}

// Four bits to the lowest bits of four bytes.
__device__ unsigned spread(unsigned bits) { return ((bits & 15u) * 0x00204081u) & 0x01010101u; }

// Bit i: pixel from + i of the mask, in rows, is inside. `from` may begin before the image, and end behind it.
__device__ unsigned inside_bits(const T* mask, const Frame& frame, int from, int height, int width) {
  const int begin = from < 0 ? 0 : from;
  int y = (int)((unsigned)begin / (unsigned)width), x = begin - y * width;
  const int left = x, right = x + 15;
  if (y >= frame.y.last || y + right / width < frame.y.first) return 0u;
  if (right < width && (left >= frame.x.last || right < frame.x.first)) return 0u;
  Tap row = tap_of(frame.y, y, frame.rule);
  unsigned bits = 0u;
  for (int i = begin - from; i < 16 && y < height; i++) {
    if (y >= frame.y.first && y < frame.y.last && x >= frame.x.first && x < frame.x.last)
      bits |= (unsigned)is_inside(mask, frame, row, tap_of(frame.x, x, frame.rule)) << i;
    if (++x == width) {
      x = 0;
      row = tap_of(frame.y, ++y, frame.rule);
    }
  }
  return bits;
}

extern "C" __global__ void paste_bool(const T* __restrict__ masks, const float* __restrict__ boxes,
                                      unsigned char* __restrict__ out, int count, int h, int w, int height,
                                      int width, float threshold, int rule) {
  const int size = height * width;
  for (int n = blockIdx.y; n < count; n += gridDim.y) {
    const Frame frame = frame_of(boxes + 4 * n, h, w, height, width, threshold, rule);
    const T* mask = masks + (long long)n * h * w;
    // Chunks of 16 aligned bytes; the first and the last may belong to the neighbouring masks in part.
    const int before = (int)((long long)n * size & 15);
    unsigned char* aligned = out + (long long)n * size - before;
    const int chunks = (int)(((long long)before + size + 15) / 16);
    for (int k = 0; k < PER_THREAD; k++) {
      const int chunk = (blockIdx.x * PER_THREAD + k) * blockDim.x + threadIdx.x;
      if (chunk >= chunks) break;
      const int from = chunk * 16 - before;
      const unsigned bits = inside_bits(mask, frame, from, height, width);
      if (from >= 0 && from <= size - 16) {
        const uint4 word = {spread(bits), spread(bits >> 4), spread(bits >> 8), spread(bits >> 12)};
        *(uint4*)(aligned + (long long)chunk * 16) = word;
      } else {
        for (int i = 0; i < 16; i++)
          if (from + i >= 0 && from + i < size) aligned[(long long)chunk * 16 + i] = bits >> i & 1u;
      }
    }
  }
}

// Run lengths. Pixels are numbered down the columns, x * height + y; an edge is a pixel unlike the one before it.
// Edges lie in the box, or right below it. Where the box is as high as the image that is the next column's first row.

__device__ bool fills_height(const Frame& frame, int height) {
  return frame.y.first == 0 && frame.y.last == height;
}

// Bit i: there is an edge at (row + i, x). A whole warp; `carry` is whether the pixel before `row` is inside.
__device__ unsigned edges_of(const T* mask, const Frame& frame, const Tap& column, int row, int x, int height,
                             int width, unsigned& carry) {
  const int y = row + (int)(threadIdx.x & 31);
  const bool on = y < frame.y.last && is_inside(mask, frame, tap_of(frame.y, y, frame.rule), column);
  const unsigned word = __ballot_sync(ALL, on);
  unsigned edges = word ^ (word << 1 | carry);
  carry = word >> 31;
  const bool seen_by_next = fills_height(frame, height) && x + 1 < frame.x.last;
  const int below = height - row;
  if (below < 32 && (x == width - 1 || seen_by_next)) edges &= ~(1u << below);
  return edges;
}

// Whether the pixel before a column's first row is inside: only where columns touch.
__device__ unsigned carry_into(const T* mask, const Frame& frame, int x, int height) {
  if (!fills_height(frame, height) || x == frame.x.first) return 0u;
  return is_inside(mask, frame, tap_of(frame.y, height - 1, frame.rule), tap_of(frame.x, x - 1, frame.rule));
}

// columns (N, width, 2): of each column of the box the number of its edges, and the place of the last one, or 0.
extern "C" __global__ void rle_count(const T* __restrict__ masks, const float* __restrict__ boxes,
                                     int2* __restrict__ columns, int count, int h, int w, int height, int width,
                                     float threshold, int rule) {
  const int warp = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
  for (int n = blockIdx.y; n < count; n += gridDim.y) {
    const Frame frame = frame_of(boxes + 4 * n, h, w, height, width, threshold, rule);
    const T* mask = masks + (long long)n * h * w;
    const int first = frame.x.first + warp * COLUMNS;
    for (int x = first; x < first + COLUMNS && x < frame.x.last; x++) {
      const Tap column = tap_of(frame.x, x, rule);
      unsigned carry = carry_into(mask, frame, x, height);
      int2 found = {0, 0};
      for (int row = frame.y.first; row <= frame.y.last; row += 32) {
        const unsigned edges = edges_of(mask, frame, column, row, x, height, width, carry);
        found.x += __popc(edges);
        if (edges) found.y = x * height + row + 31 - __clz(edges);
      }
      if ((threadIdx.x & 31) == 0) columns[(long long)n * width + x] = found;
    }
  }
}

// Edges in all columns from `first` to before `last`, and the place of the last one. A whole warp.
__device__ int2 edges_before(const int2* columns, int first, int last) {
  int2 total = {0, 0};
  for (int x = first + (int)(threadIdx.x & 31); x < last; x += 32) {
    total.x += columns[x].x;
    total.y = max(total.y, columns[x].y);
  }
  for (int step = 16; step; step >>= 1) {
    total.x += __shfl_xor_sync(ALL, total.x, step);
    total.y = max(total.y, __shfl_xor_sync(ALL, total.y, step));
  }
  return total;
}

// runs (N, max_runs): lengths, zeros first; 0 behind the last run. totals (N): how many there are, all of them also
// where max_runs is less.
extern "C" __global__ void rle_write(const T* __restrict__ masks, const float* __restrict__ boxes,
                                     const int2* __restrict__ columns, int* __restrict__ runs,
                                     int* __restrict__ totals, int count, int h, int w, int height, int width,
                                     float threshold, int rule, int max_runs) {
  const int warp = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x & 31;
  for (int n = blockIdx.y; n < count; n += gridDim.y) {
    const Frame frame = frame_of(boxes + 4 * n, h, w, height, width, threshold, rule);
    const T* mask = masks + (long long)n * h * w;
    const int first = frame.x.first + warp * COLUMNS;
    const int last = min(first + COLUMNS, frame.x.last);
    if (warp > 0 && first >= last) continue;  // an empty box still has one run, warp 0 writes it
    int* own = runs + (long long)n * max_runs;
    int2 done = edges_before(columns + (long long)n * width, frame.x.first, first);
    for (int x = first; x < last; x++) {
      const Tap column = tap_of(frame.x, x, rule);
      unsigned carry = carry_into(mask, frame, x, height);
      for (int row = frame.y.first; row <= frame.y.last; row += 32) {
        const unsigned edges = edges_of(mask, frame, column, row, x, height, width, carry);
        const int start = x * height + row;
        const unsigned lower = edges & ((1u << lane) - 1u);
        const int before = lower ? start + 31 - __clz(lower) : done.y;
        const int place = done.x + __popc(lower);
        if (edges >> lane & 1u && place < max_runs) own[place] = start + lane - before;
        if (edges) done = {done.x + __popc(edges), start + 31 - __clz(edges)};
      }
    }
    if (last < frame.x.last) continue;
    if (lane == 0) totals[n] = done.x + 1;
    for (int place = done.x + lane; place < max_runs; place += 32)
      own[place] = place == done.x ? height * width - done.y : 0;
  }
}

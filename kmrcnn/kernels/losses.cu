// Two losses that would otherwise make tensors as large as the logits: the mask loss on the true class's channel,
// and the sigmoid focal loss summed over each image. Both with their gradient; logits are T, arithmetic is float.
//
// Budget, for R rows of h*w pixels and C classes: mask_loss reads one sector of 32 bytes a pixel of the positive rows
//   (the channel has a stride of C) instead of all C. mask_loss_gradient writes R*h*w*C elements once, zeros and the
//   channel together, in 16-byte stores: 260 MB, 62 us at 4.2 TB/s, for 8 x 128 rows of 28 x 28 x 81 in float32.
//   focal_sums reads the logits once and a label for each anchor; focal_gradient reads the same and writes the
//   gradient: 4 and 8 bytes a logit in float32. 1 launch each, 2 for the focal sums. No atomics.
// Launch: blocks of 256. mask_loss, focal_total: one a row, which is a ROI or an image; focal_sums (images, parts); the
//   gradients (tiles, rows), any number of rows, as blocks go on in steps of gridDim.y.
// Determinism: all are; sums have a fixed order.

#define THREADS 256
#define VECTOR (16 / (int)sizeof(T))

// log(1 + exp(x)); exact also where exp(x) would overflow or vanish beside 1.
__device__ float softplus(float x) { return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x))); }

__device__ float sigmoid(float x) {
  const float e = expf(-fabsf(x));
  return (x >= 0.0f ? 1.0f : e) / (1.0f + e);
}

// The sum over a block of THREADS, in thread 0.
__device__ float block_sum(float value) {
  __shared__ float warps[THREADS / 32];
  for (int step = 16; step; step >>= 1) value += __shfl_down_sync(0xffffffffu, value, step);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  float total = 0.0f;
  for (int warp = 0; warp < THREADS / 32; warp++) total += warps[warp];
  return total;
}

// A row of `size` elements in vectors of 16 aligned bytes, whatever its place in memory: vector k is the elements
// place(k) <= i < place(k) + VECTOR. Of the first and the last vector some elements may belong to other rows.
struct Vectors {
  long long begin;
  int before, size;

  __device__ Vectors(int row, int size) : begin((long long)row * size), before((int)(begin % VECTOR)), size(size) {}
  __device__ int count() const { return (int)(((long long)before + size + VECTOR - 1) / VECTOR); }
  __device__ int place(int vector) const { return vector * VECTOR - before; }
  __device__ bool has(int element) const { return element >= 0 && element < size; }
  __device__ bool whole(int place) const { return place >= 0 && place <= size - VECTOR; }

  // Elements outside the row are 0.
  __device__ void load(const T *all, int place, float (&values)[VECTOR]) const {
    if (whole(place)) {
      load_floats(all + begin + place, values);
      return;
    }
#pragma unroll
    for (int i = 0; i < VECTOR; i++)
      values[i] = has(place + i) ? to_float(all[begin + place + i]) : 0.0f;
  }

  __device__ void store(T *all, int place, const float (&values)[VECTOR]) const {
    if (whole(place)) {
      store_floats(all + begin + place, values);
      return;
    }
#pragma unroll
    for (int i = 0; i < VECTOR; i++)
      if (has(place + i)) all[begin + place + i] = from_float<T>(values[i]);
  }
};

// A number from 0 on, counted in groups of `classes`.
struct Counter {
  int group, channel, classes;

  __device__ Counter(int number, int classes)
      : group((int)((unsigned)number / (unsigned)classes)), channel(number - group * classes), classes(classes) {}
  __device__ void next() {
    if (++channel < classes) return;
    channel = 0;
    group++;
  }
};

// ---- mask loss: binary cross entropy of channel class_ids[row], a mean over pixels; 0 for background ---------------

// logits (rows, pixels, classes), class_ids (rows), target (rows, pixels) -> losses (rows)
extern "C" __global__ void mask_loss(const T *__restrict__ logits, const int *__restrict__ class_ids,
                                     const float *__restrict__ target, float *__restrict__ losses, int pixels,
                                     int classes) {
  const long long row = blockIdx.x;
  const int chosen = class_ids[row];
  float sum = 0.0f;
  if (chosen > 0 && chosen < classes) {
    for (int pixel = threadIdx.x; pixel < pixels; pixel += THREADS) {
      const float x = to_float(logits[(row * pixels + pixel) * classes + chosen]);
      const float t = target[row * pixels + pixel];
      sum += t * softplus(-x) + (1.0f - t) * softplus(x);
    }
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) losses[row] = sum / (float)pixels;
}

// slopes (rows): gradient of `losses` -> gradient (rows, pixels, classes)
extern "C" __global__ void mask_loss_gradient(const float *__restrict__ slopes, const T *__restrict__ logits,
                                              const int *__restrict__ class_ids, const float *__restrict__ target,
                                              T *__restrict__ gradient, int rows, int pixels, int classes) {
  for (int row = blockIdx.y; row < rows; row += gridDim.y) {
    const Vectors vectors(row, pixels * classes);
    const int chosen = class_ids[row];
    const bool positive = chosen > 0 && chosen < classes;
    const float slope = slopes[row] / (float)pixels;
    const int step = gridDim.x * THREADS;
    for (int vector = blockIdx.x * THREADS + threadIdx.x; vector < vectors.count(); vector += step) {
      const int place = vectors.place(vector);
      Counter at(max(place, 0), classes);
      float values[VECTOR];
#pragma unroll
      for (int i = 0; i < VECTOR; i++) {
        values[i] = 0.0f;
        if (!vectors.has(place + i)) continue;
        if (positive && at.channel == chosen) {
          const float x = to_float(logits[vectors.begin + place + i]);
          values[i] = slope * (sigmoid(x) - target[(long long)row * pixels + at.group]);
        }
        at.next();
      }
      vectors.store(gradient, place, values);
    }
  }
}

// ---- sigmoid focal loss (Lin et al. 2017) --------------------------------------------------------------------------
// logits (images, anchors, classes), labels (images, anchors): k makes channel k - 1 positive and the others
// negative, 0 makes all negative, and below 0 the anchor does not count. With z = x for a positive logit x and -x for
// a negative one, the loss is -weight * sigmoid(-z)^gamma * log(sigmoid(z)); gamma * softplus(z) is -log of the power.

__device__ float focal(float x, bool positive, float alpha, float gamma) {
  const float z = positive ? x : -x, weight = positive ? alpha : 1.0f - alpha;
  return weight * expf(-gamma * softplus(z)) * softplus(-z);
}

__device__ float focal_slope(float x, bool positive, float alpha, float gamma) {
  const float z = positive ? x : -x, weight = positive ? -alpha : 1.0f - alpha;
  return weight * expf(-gamma * softplus(z)) * (gamma * sigmoid(z) * softplus(-z) + sigmoid(-z));
}

// -> sums (images, gridDim.y), one for each block
extern "C" __global__ void focal_sums(const T *__restrict__ logits, const int *__restrict__ labels,
                                      float *__restrict__ sums, int anchors, int classes, float alpha, float gamma) {
  const int image = blockIdx.x, step = gridDim.y * THREADS;
  const Vectors vectors(image, anchors * classes);
  float sum = 0.0f;
  for (int vector = blockIdx.y * THREADS + threadIdx.x; vector < vectors.count(); vector += step) {
    const int place = vectors.place(vector);
    Counter at(max(place, 0), classes);
    float x[VECTOR];
    vectors.load(logits, place, x);
#pragma unroll
    for (int i = 0; i < VECTOR; i++) {
      if (!vectors.has(place + i)) continue;
      const int label = labels[(long long)image * anchors + at.group];
      if (label >= 0) sum += focal(x[i], label == at.channel + 1, alpha, gamma);
      at.next();
    }
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) sums[(long long)image * gridDim.y + blockIdx.y] = sum;
}

// sums (images, parts) -> losses (images)
extern "C" __global__ void focal_total(const float *__restrict__ sums, float *__restrict__ losses, int parts) {
  float sum = 0.0f;
  for (int part = threadIdx.x; part < parts; part += THREADS) sum += sums[(long long)blockIdx.x * parts + part];
  sum = block_sum(sum);
  if (threadIdx.x == 0) losses[blockIdx.x] = sum;
}

// slopes (images): gradient of `losses` -> gradient (images, anchors, classes)
extern "C" __global__ void focal_gradient(const float *__restrict__ slopes, const T *__restrict__ logits,
                                          const int *__restrict__ labels, T *__restrict__ gradient, int images,
                                          int anchors, int classes, float alpha, float gamma) {
  for (int image = blockIdx.y; image < images; image += gridDim.y) {
    const Vectors vectors(image, anchors * classes);
    const int step = gridDim.x * THREADS;
    const float slope = slopes[image];
    for (int vector = blockIdx.x * THREADS + threadIdx.x; vector < vectors.count(); vector += step) {
      const int place = vectors.place(vector);
      Counter at(max(place, 0), classes);
      float x[VECTOR];
      vectors.load(logits, place, x);
#pragma unroll
      for (int i = 0; i < VECTOR; i++) {
        if (!vectors.has(place + i)) continue;
        const int label = labels[(long long)image * anchors + at.group];
        x[i] = label < 0 ? 0.0f : slope * focal_slope(x[i], label == at.channel + 1, alpha, gamma);
        at.next();
      }
      vectors.store(gradient, place, x);
    }
  }
}

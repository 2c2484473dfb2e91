// Not a kernel of the library: one of everything that kernels use, for the tests of the emulator.

// out[b] = sum of the n <= 64 values of row b; launch (rows), (64), shared_bytes 64 * 4.
extern "C" __global__ void __launch_bounds__(64) row_sum(const T *__restrict__ x, float *__restrict__ out, int n) {
  __shared__ float part[2];
  extern __shared__ float mirrored[];
  int t = threadIdx.x;
  mirrored[63 - t] = t < n ? to_float(x[(long long)blockIdx.x * n + t]) : 0.f;
  __syncthreads();  // before the mirror is read
  float sum = mirrored[t];
  for (int d = 16; d; d >>= 1) sum += __shfl_xor_sync(~0u, sum, d);
  if ((t & 31) == 0) part[t >> 5] = sum;
  __syncthreads();  // before the parts are read
  if (t == 0) out[blockIdx.x] = part[0] + part[1];
}

// total += values in warps of any length; lanes beyond n take part in no vote.
extern "C" __global__ void count_positive(const float *x, unsigned long long *total, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  unsigned votes = __ballot_sync(~0u, i < n && x[i] > 0.f);
  if ((threadIdx.x & 31) == 0) atomicAdd(total, (unsigned long long)__popc(votes));
}

extern "C" __global__ void divergent(int *out, int limit) {
  if ((int)threadIdx.x < limit) __syncthreads();
  out[threadIdx.x] = 1;
}

struct Shift { float by; int times; };
extern "C" __global__ void shift(const float *x, float *out, Shift how, long long n) {
  long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (i < n) out[i] = x[i] + how.by * how.times;
}

extern "C" __global__ void copy_packs(const T *x, T *out, int packs) {
  int i = threadIdx.x;
  float values[8];
  if (i < packs) load_floats<8>(x + 8 * i, values), store_floats<8>(out + 8 * i, values);
}

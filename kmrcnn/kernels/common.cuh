// Put in front of every kernel file: half precision, 16-byte access, boxes, the sampling hash.
//
// Files are compiled with -fmad=false, so that float expressions round as numpy's do; where a fused multiply-add is
// wanted, fmaf() says so. Boxes are y1x1y2x2 floats, y2 and x2 exclusive, as in kmrcnn/ops.

#ifdef __CUDACC__  // NVIDIA's own headers are not needed for storage alone, so none has to be found at run time
struct __half { unsigned short raw; };
struct __nv_bfloat16 { unsigned short raw; };
__device__ __forceinline__ float __half2float(__half x) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(x.raw));
  return result;
}
__device__ __forceinline__ __half __float2half(float x) {
  __half result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.raw) : "f"(x));
  return result;
}
__device__ __forceinline__ float __bfloat162float(__nv_bfloat16 x) {
  return __uint_as_float((unsigned)x.raw << 16);
}
__device__ __forceinline__ __nv_bfloat16 __float2bfloat16(float x) {
  unsigned all = __float_as_uint(x);
  __nv_bfloat16 result;
  result.raw = x != x ? 0x7FFF : (unsigned short)((all + 0x7FFF + (all >> 16 & 1)) >> 16);
  return result;
}
#endif

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class Type> __device__ __forceinline__ Type from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) { return x; }
template <> __device__ __forceinline__ __half from_float<__half>(float x) { return __float2half(x); }
template <> __device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) { return __float2bfloat16(x); }

// N neighbouring values as one access of N * sizeof(Type) bytes, up to 16; the address must be a multiple of that.
template <class Type, int N> struct alignas(sizeof(Type) * N) Pack { Type value[N]; };

template <int N, class Type> __device__ __forceinline__ void load_floats(const Type *address, float (&out)[N]) {
  Pack<Type, N> pack = *reinterpret_cast<const Pack<Type, N> *>(address);
#pragma unroll
  for (int i = 0; i < N; i++) out[i] = to_float(pack.value[i]);
}

template <int N, class Type> __device__ __forceinline__ void store_floats(Type *address, const float (&values)[N]) {
  Pack<Type, N> pack;
#pragma unroll
  for (int i = 0; i < N; i++) pack.value[i] = from_float<Type>(values[i]);
  *reinterpret_cast<Pack<Type, N> *>(address) = pack;
}

// ---- boxes: kmrcnn/ops/boxes.py and iou.py ------------------------------------------------------------------------

struct Box { float y1, x1, y2, x2; };

__device__ __forceinline__ Box load_box(const float *boxes, long long row) {
  const float *box = boxes + 4 * row;
  return {box[0], box[1], box[2], box[3]};
}

__device__ __forceinline__ float box_area(Box box) {
  return fmaxf(box.y2 - box.y1, 0.f) * fmaxf(box.x2 - box.x1, 0.f);
}

// Boxes without area give 0, never NaN.
__device__ __forceinline__ float box_iou(Box a, Box b, float area_a, float area_b) {
  float height = fmaxf(fminf(a.y2, b.y2) - fmaxf(a.y1, b.y1), 0.f);
  float width = fmaxf(fminf(a.x2, b.x2) - fmaxf(a.x1, b.x1), 0.f);
  float overlap = height * width;
  return overlap > 0.f ? overlap / (area_a + area_b - overlap) : 0.f;
}
__device__ __forceinline__ float box_iou(Box a, Box b) { return box_iou(a, b, box_area(a), box_area(b)); }

// For IoUs: a box with a NaN overlaps nothing, like one without area.
__device__ __forceinline__ Box comparable(float4 b) {
  bool whole = b.x == b.x && b.y == b.y && b.z == b.z && b.w == b.w;
  return whole ? Box{b.x, b.y, b.z, b.w} : Box{0.f, 0.f, 0.f, 0.f};
}

// Deltas dy, dx, dh, dw are divided by the weights already; limit is the largest log scale.
__device__ __forceinline__ Box decode_box(Box reference, float dy, float dx, float dh, float dw, float limit) {
  float height = reference.y2 - reference.y1, width = reference.x2 - reference.x1;
  float y = reference.y1 + 0.5f * height + dy * height, x = reference.x1 + 0.5f * width + dx * width;
  float half_height = 0.5f * height * expf(fminf(dh, limit)), half_width = 0.5f * width * expf(fminf(dw, limit));
  return {y - half_height, x - half_width, y + half_height, x + half_width};
}

__device__ __forceinline__ bool has_nan(Box box) {
  return box.y1 != box.y1 || box.x1 != box.x1 || box.y2 != box.y2 || box.x2 != box.x2;
}

// ---- sorting by score ---------------------------------------------------------------------------------------------

// Integers in the order of floats that are no NaN; -0 is equal to 0.
__device__ __forceinline__ unsigned ordered_bits(float x) {
  unsigned bits = __float_as_uint(x + 0.f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float from_ordered_bits(unsigned bits) {
  return __uint_as_float(bits & 0x80000000u ? bits & 0x7FFFFFFFu : ~bits);
}

// ---- random choices: kmrcnn/ops/sampling.py -----------------------------------------------------------------------

__device__ __forceinline__ unsigned mix_bits(unsigned x) {
  x = (x ^ x >> 16) * 0x7FEB352Du;
  x = (x ^ x >> 15) * 0x846CA68Bu;
  return x ^ x >> 16;
}

// In [0, 2^31 - 1]; the same integers as hash_int32(seed, stream, slot).
__device__ __forceinline__ int sampling_hash(int seed, int stream, int slot) {
  unsigned key = mix_bits((unsigned)seed + 0x9E3779B9u * (unsigned)(stream + 1));
  return (int)(mix_bits(key + (unsigned)slot * 0x9E3779B9u) & 0x7FFFFFFFu);
}

// What candidates are ranked by, below the 2^31 - 1 of those who are none. At most four slots share a rank: two have
// the same 31 bits, and the two largest hashes become one.
__device__ __forceinline__ int sampling_rank(int seed, int stream, int slot) {
  return min(sampling_hash(seed, stream, slot), 0x7FFFFFFE);
}

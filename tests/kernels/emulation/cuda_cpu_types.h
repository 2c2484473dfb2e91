// CUDA's vector types, half precision and intrinsics for cuda_cpu.h. Only what every GPU from sm_70 on has.
#pragma once

#define VECTOR(type, base, bytes)                                                             \
  struct alignas(bytes * 2) type##2 { base x, y; };                                           \
  struct type##3 { base x, y, z; };                                                           \
  struct alignas(bytes * 4 > 16 ? 16 : bytes * 4) type##4 { base x, y, z, w; };               \
  inline type##2 make_##type##2(base x, base y) { return {x, y}; }                         \
  inline type##3 make_##type##3(base x, base y, base z) { return {x, y, z}; }              \
  inline type##4 make_##type##4(base x, base y, base z, base w) { return {x, y, z, w}; }
#define uint3 vector_uint3  // threadIdx has the real one already
VECTOR(float, float, 4)
VECTOR(double, double, 8)
VECTOR(int, int, 4)
VECTOR(uint, unsigned, 4)
VECTOR(short, short, 2)
VECTOR(ushort, unsigned short, 2)
VECTOR(char, signed char, 1)
VECTOR(uchar, unsigned char, 1)
VECTOR(longlong, long long, 8)
VECTOR(ulonglong, unsigned long long, 8)
#undef uint3

template <class To, class From> inline To reinterpret(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  memcpy((void *)&result, &value, sizeof result);
  return result;
}
inline int __float_as_int(float x) { return reinterpret<int>(x); }
inline unsigned __float_as_uint(float x) { return reinterpret<unsigned>(x); }
inline float __int_as_float(int x) { return reinterpret<float>(x); }
inline float __uint_as_float(unsigned x) { return reinterpret<float>(x); }
inline long long __double_as_longlong(double x) { return reinterpret<long long>(x); }
inline double __longlong_as_double(long long x) { return reinterpret<double>(x); }

// Rounds to nearest, ties to even; as storage only, arithmetic happens in float.
struct __half {
  unsigned short raw;
  __half() = default;
  inline __half(float value) : raw(reinterpret<unsigned short>((_Float16)value)) {}
  inline operator float() const { return (float)reinterpret<_Float16>(raw); }
};
struct __nv_bfloat16 {
  unsigned short raw;
  __nv_bfloat16() = default;
  inline __nv_bfloat16(float value) {
    unsigned all = __float_as_uint(value);
    raw = value != value ? 0x7FFF : (unsigned short)((all + 0x7FFF + (all >> 16 & 1)) >> 16);
  }
  inline operator float() const { return __uint_as_float((unsigned)raw << 16); }
};
inline float __half2float(__half x) { return x; }
inline __half __float2half(float x) { return x; }
inline __half __float2half_rn(float x) { return x; }
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline __nv_bfloat16 __float2bfloat16(float x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }

template <class Type> inline Type __ldg(const Type *address) { return *address; }
template <class Type> inline Type __ldcs(const Type *address) { return *address; }
template <class Type> inline Type __ldcg(const Type *address) { return *address; }
template <class Type> inline void __stcs(Type *address, Type value) { *address = value; }
template <class Type> inline void __stcg(Type *address, Type value) { *address = value; }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
inline unsigned __brev(unsigned x) {
  unsigned result = 0;
  for (int i = 0; i < 32; i++) result |= (x >> i & 1) << (31 - i);
  return result;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1) : 0; }
inline float rsqrtf(float x) { return 1 / sqrtf(x); }

// A GPU's conversions of floats to integers saturate, and NaN becomes 0; so do casts there, not on a CPU.
template <class Integer> inline Integer saturated(double x, double low, double high, Integer least, Integer most) {
  return x != x ? 0 : x <= low ? least : x >= high ? most : (Integer)x;
}
inline int __float2int_rz(float x) { return saturated(trunc(x), -2147483648.0, 2147483647.0, INT_MIN, INT_MAX); }
inline int __float2int_rn(float x) { return __float2int_rz(rintf(x)); }
inline int __float2int_rd(float x) { return __float2int_rz(floorf(x)); }
inline int __float2int_ru(float x) { return __float2int_rz(ceilf(x)); }
inline unsigned __float2uint_rz(float x) { return saturated(trunc(x), 0.0, 4294967295.0, 0u, UINT_MAX); }
inline unsigned __float2uint_rn(float x) { return __float2uint_rz(rintf(x)); }
inline long long __float2ll_rz(float x) {
  return saturated((double)truncf(x), -9.2233720368547758e18, 9.2233720368547758e18, LLONG_MIN, LLONG_MAX);
}
inline long long __float2ll_rn(float x) { return __float2ll_rz(rintf(x)); }
inline float __int2float_rn(int x) { return (float)x; }
inline float __uint2float_rn(unsigned x) { return (float)x; }
inline float __ll2float_rn(long long x) { return (float)x; }

template <class A, class B> inline std::common_type_t<A, B> min(A a, B b) {
  using Common = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<Common>) return fmin((Common)a, (Common)b);
  return (Common)b < (Common)a ? (Common)b : (Common)a;
}
template <class A, class B> inline std::common_type_t<A, B> max(A a, B b) {
  using Common = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<Common>) return fmax((Common)a, (Common)b);
  return (Common)a < (Common)b ? (Common)b : (Common)a;
}

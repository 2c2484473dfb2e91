// Runs CUDA C++ on the CPU. Put in front of a .cu file with `g++ -include`; emulator.py adds one launcher a kernel.
//
// Blocks run one after another, the threads of a block as fibers with a stack each, which change places at barriers
// and warp operations only. Between two barriers threads thus run one after another in the order asked for: a result
// that depends on the order is a race. Static __shared__ memory and the dynamic buffer are filled with 0xFF before
// every block, so that reading what nobody wrote gives NaN or -1. With the address sanitizer they keep redzones.
//
// Stricter than a GPU: a thread that left the kernel breaks __syncthreads(), and threads that meet at a barrier or
// a warp operation must have come to the same line.
#pragma once
#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#ifdef __SANITIZE_ADDRESS__
#define __shared__ static
#else
#define __shared__ static __attribute__((section("cuda_shared")))
#endif

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x = 1, y = 1, z = 1; };
static dim3 gridDim, blockDim;
static uint3 blockIdx, threadIdx;
constexpr int warpSize = 32;

// ---- fibers -------------------------------------------------------------------------------------------------------

namespace emulation {
enum Wait { READY, BLOCK, WARP, DONE };
struct Fiber {
  void *stack_pointer;
  Wait wait;
  int line;
  unsigned mask, group;       // lanes asked for by a warp operation, and those that took part
  uint64_t published, seen;   // a lane's value for the others, and what they see after the meeting
  uint3 index;
};
constexpr unsigned MOST_THREADS = 1024;
constexpr size_t STACK = 256 * 1024;
static Fiber fibers[MOST_THREADS];
static char *stacks;
static void *scheduler;
static unsigned current, threads, order;
static char *dynamic_shared;
static size_t dynamic_bytes;
static char message[512];
static void (*body)(void *);
static void *body_argument;

extern "C" void emulation_switch(void **save, void *load);
#if defined(__x86_64__)
asm(".text\n.type emulation_switch,@function\n.globl emulation_switch\n.hidden emulation_switch\nemulation_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\nmov %rsp,(%rdi)\nmov %rsi,%rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n.size emulation_switch,.-emulation_switch\n");
#else
#error "the fiber switch is written for x86-64"
#endif

inline unsigned thread_number() {
  return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
}
inline unsigned lane() { return current & 31; }
inline unsigned first_lane() { return current & ~31u; }

inline void wait(Wait kind, unsigned mask, int line) {
  Fiber &fiber = fibers[current];
  fiber.wait = kind, fiber.mask = mask, fiber.line = line;
  emulation_switch(&fiber.stack_pointer, scheduler);
}

inline void entry() {
  body(body_argument);
  wait(DONE, 0, 0);
}

inline void prepare(unsigned number) {
  void **top = (void **)(stacks + (number + 1) * STACK);
  *--top = nullptr;
  *--top = (void *)entry;
  for (int saved = 0; saved < 6; saved++) *--top = nullptr;
  fibers[number] = {top, READY, 0, 0, 0, 0, 0,
                    {number % blockDim.x, number / blockDim.x % blockDim.y, number / (blockDim.x * blockDim.y)}};
}

inline bool fail(const char *what, const Fiber &one, const Fiber &other) {
  static const char *places[] = {"running", "__syncthreads", "a warp operation", "the end"};
  snprintf(message, sizeof message, "%s in block (%u,%u,%u): thread (%u,%u,%u) is at %s, line %d; thread (%u,%u,%u) at "
           "%s, line %d", what, blockIdx.x, blockIdx.y, blockIdx.z, one.index.x, one.index.y, one.index.z,
           places[one.wait], one.line, other.index.x, other.index.y, other.index.z, places[other.wait], other.line);
  return false;
}

// Lets the lanes of a warp operation go once all of them (that still run) have come. False: they never can.
inline bool meet(unsigned number, bool &moved) {
  Fiber &one = fibers[number];
  unsigned first = number & ~31u, group = 0;
  if (!(one.mask >> (number & 31) & 1)) return fail("lane outside its own mask", one, one);
  for (unsigned lane = 0; lane < 32 && first + lane < threads; lane++) {
    Fiber &other = fibers[first + lane];
    if (!(one.mask >> lane & 1) || other.wait == DONE) continue;
    if (other.wait == READY || other.wait == BLOCK) return true;
    if (other.mask != one.mask || other.line != one.line) return fail("divergent warp operation", one, other);
    group |= 1u << lane;
  }
  for (unsigned lane = 0; lane < 32; lane++)
    if (group >> lane & 1) {
      Fiber &other = fibers[first + lane];
      other.wait = READY, other.group = group, other.seen = other.published;
    }
  return moved = true;
}

inline bool release_block() {
  for (unsigned i = 0; i < threads; i++) {
    if (fibers[i].wait != BLOCK || fibers[i].line != fibers[0].line)
      return fail("divergent barrier", fibers[0], fibers[i]);
  }
  for (unsigned i = 0; i < threads; i++) fibers[i].wait = READY;
  return true;
}

// The k-th of n in the order asked for: 0 forward, 1 backward, above that a walk with a large odd-looking step.
inline unsigned nth(unsigned k, unsigned n) {
  if (order < 2) return order == 0 ? k : n - 1 - k;
  unsigned step = n * 5 / 8 + order;
  for (;; step++) {
    unsigned a = step, b = n;
    while (b) { unsigned rest = a % b; a = b; b = rest; }
    if (a == 1) break;
  }
  return (unsigned)(((uint64_t)k * step + order) % n);
}

inline bool run_block() {
  for (unsigned i = 0; i < threads; i++) prepare(i);
  for (unsigned left = threads; left;) {
    bool moved = false;
    for (unsigned k = 0; k < threads; k++) {
      current = nth(k, threads);
      if (fibers[current].wait != READY) continue;
      threadIdx = fibers[current].index, moved = true;
      emulation_switch(&scheduler, fibers[current].stack_pointer);
      left -= fibers[current].wait == DONE;
    }
    for (unsigned i = 0; i < threads; i++)
      if (fibers[i].wait == WARP && !meet(i, moved)) return false;
    if (!moved && left && !release_block()) return false;
  }
  return true;
}

extern "C" __attribute__((weak)) char __start_cuda_shared, __stop_cuda_shared;

inline void fill_shared() {
#ifndef __SANITIZE_ADDRESS__
  if (&__start_cuda_shared) memset(&__start_cuda_shared, 0xFF, &__stop_cuda_shared - &__start_cuda_shared);
#endif
  memset(dynamic_shared, 0xFF, dynamic_bytes);
}

inline const char *run_grid(const unsigned *shape, size_t shared_bytes, unsigned asked_order) {
  gridDim = {shape[0], shape[1], shape[2]}, blockDim = {shape[3], shape[4], shape[5]};
  threads = shape[3] * shape[4] * shape[5], order = asked_order, message[0] = 0;
  if (!stacks)
    stacks = (char *)mmap(nullptr, MOST_THREADS * STACK, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  dynamic_shared = (char *)aligned_alloc(16, (shared_bytes + 15) / 16 * 16), dynamic_bytes = shared_bytes;
  unsigned blocks = shape[0] * shape[1] * shape[2];
  for (unsigned k = 0; k < blocks && !message[0]; k++) {
    unsigned number = nth(k, blocks);
    blockIdx = {number % shape[0], number / shape[0] % shape[1], number / (shape[0] * shape[1])};
    fill_shared();
    run_block();
  }
  free(dynamic_shared);
  return message;
}

template <class Type> constexpr char kind() {
  using Plain = std::remove_cv_t<Type>;
  return std::is_pointer_v<Plain> ? 'p' : std::is_same_v<Plain, bool> ? 'b' : std::is_floating_point_v<Plain> ? 'f'
       : std::is_integral_v<Plain> ? 'i' : 's';
}

// What the parameters are, for the launcher in Python to check its arguments: "p8 i4 f4".
template <class... Types> inline const char *describe(void (*)(Types...)) {
  static char text[16 * sizeof...(Types) + 1];
  char *end = text;
  ((end += sprintf(end, "%c%zu ", kind<Types>(), sizeof(Types))), ...);
  return text;
}

template <class... Types, size_t... I>
inline void call(void (*kernel)(Types...), void **arguments, std::index_sequence<I...>) {
  kernel(*(std::remove_reference_t<Types> *)arguments[I]...);
}

template <class... Types>
inline const char *launch(void (*kernel)(Types...), const unsigned *shape, void **arguments, size_t shared_bytes,
                             unsigned asked_order) {
  struct Job { void (*kernel)(Types...); void **arguments; } job{kernel, arguments};
  body_argument = &job;
  body = [](void *p) {
    call(((Job *)p)->kernel, ((Job *)p)->arguments, std::index_sequence_for<Types...>());
  };
  return run_grid(shape, shared_bytes, asked_order);
}

// ---- what a lane tells the others ---------------------------------------------------------------------------------

template <class Type> inline uint64_t bits(Type value) {
  static_assert(sizeof(Type) <= 8, "warp operations take up to 64 bits");
  uint64_t raw = 0;
  memcpy(&raw, &value, sizeof value);
  return raw;
}

// A lane outside the operation gives 0xFF..., as nobody may rely on its value.
template <class Type> inline Type from_lane(unsigned source) {
  const Fiber &other = fibers[first_lane() + (source & 31)];
  uint64_t raw = fibers[current].group >> (source & 31) & 1 ? other.seen : ~0ull;
  Type value;
  memcpy((void *)&value, &raw, sizeof value);
  return value;
}

template <class Type> inline void meet_lanes(unsigned mask, Type value, int line) {
  fibers[current].published = bits(value);
  wait(WARP, mask, line);
}

inline unsigned agreeing(uint64_t raw) {
  unsigned lanes = 0, group = fibers[current].group;
  for (unsigned i = 0; i < 32; i++)
    if (group >> i & 1 && fibers[first_lane() + i].seen == raw) lanes |= 1u << i;
  return lanes;
}

static int counts[MOST_THREADS];
}  // namespace emulation

// ---- barriers and warp operations ---------------------------------------------------------------------------------

#define HERE int line = __builtin_LINE()
inline void __syncthreads(HERE) { emulation::wait(emulation::BLOCK, 0, line); }
inline int __syncthreads_count(int predicate, HERE) {
  using namespace emulation;
  counts[current] = predicate != 0;
  wait(BLOCK, 0, line);
  int total = 0;
  for (unsigned i = 0; i < threads; i++) total += counts[i];
  wait(BLOCK, 0, line);
  return total;
}
inline int __syncthreads_or(int predicate, HERE) { return __syncthreads_count(predicate, line) > 0; }
inline int __syncthreads_and(int predicate, HERE) {
  return __syncthreads_count(predicate, line) == (int)emulation::threads;
}
inline void __syncwarp(unsigned mask = ~0u, HERE) { emulation::meet_lanes(mask, 0, line); }
inline void __threadfence() {}
inline void __threadfence_block() {}

template <class Type> inline Type __shfl_sync(unsigned mask, Type value, int source, int width = 32, HERE) {
  emulation::meet_lanes(mask, value, line);
  unsigned base = emulation::lane() & ~(width - 1);
  return emulation::from_lane<Type>(base + (source & (width - 1)));
}
template <class Type> inline Type __shfl_xor_sync(unsigned mask, Type value, int other, int width = 32, HERE) {
  emulation::meet_lanes(mask, value, line);
  unsigned lane = emulation::lane(), source = lane ^ other;
  return source / width > lane / width ? value : emulation::from_lane<Type>(source);
}
template <class Type> inline Type __shfl_down_sync(unsigned mask, Type value, unsigned by, int width = 32, HERE) {
  emulation::meet_lanes(mask, value, line);
  unsigned lane = emulation::lane();
  return lane % width + by >= (unsigned)width ? value : emulation::from_lane<Type>(lane + by);
}
template <class Type> inline Type __shfl_up_sync(unsigned mask, Type value, unsigned by, int width = 32, HERE) {
  emulation::meet_lanes(mask, value, line);
  unsigned lane = emulation::lane();
  return lane % width < by ? value : emulation::from_lane<Type>(lane - by);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, HERE) {
  emulation::meet_lanes(mask, (uint64_t)(predicate != 0), line);
  return emulation::agreeing(1);
}
inline int __any_sync(unsigned mask, int predicate, HERE) { return __ballot_sync(mask, predicate, line) != 0; }
inline int __all_sync(unsigned mask, int predicate, HERE) { return __ballot_sync(mask, !predicate, line) == 0; }
template <class Type> inline unsigned __match_any_sync(unsigned mask, Type value, HERE) {
  emulation::meet_lanes(mask, value, line);
  return emulation::agreeing(emulation::bits(value));
}

// ---- atomics: no other fiber runs meanwhile -------------------------------------------------------------------------

#define ATOMIC(name, result)                                                                                     \
  template <class Type> inline Type name(Type *address, std::common_type_t<Type> value) {                      \
    Type old = *address;                                                                                          \
    *address = (result);                                                                                          \
    return old;                                                                                                   \
  }
ATOMIC(atomicAdd, old + value)
ATOMIC(atomicSub, old - value)
ATOMIC(atomicMax, old < value ? value : old)
ATOMIC(atomicMin, value < old ? value : old)
ATOMIC(atomicOr, old | value)
ATOMIC(atomicAnd, old & value)
ATOMIC(atomicXor, old ^ value)
ATOMIC(atomicExch, value)
template <class Type>
inline Type atomicCAS(Type *address, std::common_type_t<Type> expected, std::common_type_t<Type> value) {
  Type old = *address;
  if (old == expected) *address = value;
  return old;
}

#include "cuda_cpu_types.h"

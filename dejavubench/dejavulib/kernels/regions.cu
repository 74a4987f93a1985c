// A region of the cache <-> one packed buffer: all layers, K and V, in one launch.
//
// A *plane* is one layer's K or V within the region. Within a plane, `row` consecutive vectors lie
// together in the cache; three more axes, each with a stride, count the rows. Planes are packed one
// behind the other: layer 0's K, layer 0's V, layer 1's K, ... All sizes and strides count vectors
// of type Vector (16 bytes if everything is a multiple of that).

struct Divider {  // n / d for n < 2^31 by a multiplication (Granlund and Montgomery, PLDI 1994)
    unsigned divisor, multiplier, shift, padding;
    __device__ unsigned quotient(unsigned dividend) const {
        return (__umulhi(dividend, multiplier) + dividend) >> shift;
    }
};

struct Kind {  // what all layers' K, or V, have in common
    long long first_vector;  // where the region begins
    long long layer_stride, outer_stride, middle_stride, inner_stride;
    long long packed_offset;  // of this kind in a layer's packed vectors
    unsigned plane_size, padding;
    Divider row_size, inner_size, middle_size;  // of a row, and of the two inner axes
};

struct Region {
    long long packed_layer_size;  // of K and V
    Kind kinds[2];
};

constexpr int VECTORS_PER_THREAD = 4;  // independent loads in flight before the first store

template <typename Vector, bool GATHER>
__global__ void copy_region(const Region* __restrict__ region, Vector* k, Vector* v,
                            Vector* packed) {
    const Kind& kind = region->kinds[blockIdx.y & 1];
    const long long layer = blockIdx.y >> 1;
    Vector* cache = (blockIdx.y & 1 ? v : k) + kind.first_vector + layer * kind.layer_stride;
    packed += layer * region->packed_layer_size + kind.packed_offset;
    const unsigned begin = blockIdx.x * (blockDim.x * VECTORS_PER_THREAD) + threadIdx.x;
    Vector* in_cache[VECTORS_PER_THREAD];
    Vector values[VECTORS_PER_THREAD];
#pragma unroll
    for (int i = 0; i < VECTORS_PER_THREAD; i++) {
        const unsigned index = begin + i * blockDim.x;  // among the plane's vectors
        if (index < kind.plane_size) {
            // In the mixed radix of row, inner and middle, it gives the place along each axis.
            const unsigned row = kind.row_size.quotient(index);
            const unsigned outer_and_middle = kind.inner_size.quotient(row);
            const unsigned outer = kind.middle_size.quotient(outer_and_middle);
            in_cache[i] = cache + outer * kind.outer_stride +
                          (outer_and_middle - outer * kind.middle_size.divisor) * kind.middle_stride +
                          (row - outer_and_middle * kind.inner_size.divisor) * kind.inner_stride +
                          (index - row * kind.row_size.divisor);
            values[i] = GATHER ? *in_cache[i] : packed[index];
        }
    }
#pragma unroll
    for (int i = 0; i < VECTORS_PER_THREAD; i++) {
        const unsigned index = begin + i * blockDim.x;
        if (index < kind.plane_size) {
            if (GATHER)
                packed[index] = values[i];
            else
                *in_cache[i] = values[i];
        }
    }
}

template __global__ void copy_region<uint4, true>(const Region*, uint4*, uint4*, uint4*);
template __global__ void copy_region<uint4, false>(const Region*, uint4*, uint4*, uint4*);
template __global__ void copy_region<uint2, true>(const Region*, uint2*, uint2*, uint2*);
template __global__ void copy_region<uint2, false>(const Region*, uint2*, uint2*, uint2*);
template __global__ void copy_region<unsigned, true>(const Region*, unsigned*, unsigned*, unsigned*);
template __global__ void copy_region<unsigned, false>(const Region*, unsigned*, unsigned*, unsigned*);
template __global__ void copy_region<unsigned short, true>(const Region*, unsigned short*, unsigned short*, unsigned short*);
template __global__ void copy_region<unsigned short, false>(const Region*, unsigned short*, unsigned short*, unsigned short*);
template __global__ void copy_region<unsigned char, true>(const Region*, unsigned char*, unsigned char*, unsigned char*);
template __global__ void copy_region<unsigned char, false>(const Region*, unsigned char*, unsigned char*, unsigned char*);

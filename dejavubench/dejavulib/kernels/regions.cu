// A region of the cache <-> one packed buffer: all layers, K and V, in one launch.
//
// A *plane* is one layer's K or V within the region. Within a plane, `row` consecutive vectors lie
// together in the cache; three more axes, each with a stride, count the rows. Planes are packed one
// behind the other: layer 0's K, layer 0's V, layer 1's K, ... All sizes and strides count vectors
// of type V (16 bytes if everything is a multiple of that).

struct Divider {  // n / d for n < 2^31 by a multiplication (Granlund and Montgomery, PLDI 1994)
    unsigned divisor, multiplier, shift, _;
    __device__ unsigned operator()(unsigned n) const {
        return (__umulhi(n, multiplier) + n) >> shift;
    }
};

struct Kind {  // what all layers' K, or V, have in common
    long long first, layer, axis0, axis1, axis2;  // where the region begins; strides
    long long packed;                             // offset of this kind in a layer's packed bytes
    unsigned size, _;                             // vectors of a plane
    Divider row, inner, middle;                   // sizes of a row and of the two inner axes
};

struct Region {
    long long layer;  // packed vectors of one layer, K and V
    Kind kinds[2];
};

constexpr int EACH = 4;  // vectors a thread: independent loads in flight before the first store

template <typename V, bool GATHER>
__global__ void copy_region(const Region* __restrict__ region, V* k, V* v, V* packed) {
    const Kind& kind = region->kinds[blockIdx.y & 1];
    const long long layer = blockIdx.y >> 1;
    V* cache = (blockIdx.y & 1 ? v : k) + kind.first + layer * kind.layer;
    packed += layer * region->layer + kind.packed;
    const unsigned begin = blockIdx.x * (blockDim.x * EACH) + threadIdx.x;
    V* places[EACH];
    V values[EACH];
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const unsigned at = begin + i * blockDim.x;
        if (at < kind.size) {
            // `at` in the mixed radix of row, inner and middle gives the place along each axis.
            const unsigned row = kind.row(at), outer = kind.inner(row);
            const unsigned outermost = kind.middle(outer);
            places[i] = cache + outermost * kind.axis0 +
                        (outer - outermost * kind.middle.divisor) * kind.axis1 +
                        (row - outer * kind.inner.divisor) * kind.axis2 +
                        (at - row * kind.row.divisor);
            values[i] = GATHER ? *places[i] : packed[at];
        }
    }
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const unsigned at = begin + i * blockDim.x;
        if (at < kind.size) {
            if (GATHER)
                packed[at] = values[i];
            else
                *places[i] = values[i];
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

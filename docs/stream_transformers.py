"""Stream the KV cache of a transformers model to another rank's memory, and go on from it there.

mpirun -n 2 python docs/stream_transformers.py

Rank 0 generates; each layer's keys and values leave as soon as they are in place. Rank 1 receives
them, then generates the same tokens from the cache that came. docs/LIBRARY.md explains the calls.
"""

import torch
from mpi4py import MPI
from transformers import Cache, GPT2Config, GPT2LMHeadModel
from transformers.cache_utils import CacheLayerMixin

from dejavubench import dejavulib as lib

PROMPT, STREAMED_STEPS, NEW = 20, 4, 12  # NEW: tokens that rank 1 generates
SLOT = 1 << 20  # bytes of a staging slot


class StreamedLayer(CacheLayerMixin):
    """One layer of a KVCache, as transformers wants it; tells the manager what is in place."""

    def __init__(self, cache, layer, seen=0, manager=None):
        super().__init__()
        self.cache, self.layer, self.seen, self.manager = cache, layer, seen, manager
        self.is_initialized = True

    def lazy_initialization(self, key_states, value_states): ...

    def update(self, key_states, value_states, *args, **kwargs):
        self.cache.store(self.layer, self.seen, key_states, value_states)
        if self.manager and self.seen == 0:
            self.manager.layer_ready(self.layer)
        self.seen += key_states.shape[2]
        return self.cache.keys(self.layer, self.seen), self.cache.values(self.layer, self.seen)

    def get_mask_sizes(self, query_length):
        return self.seen + query_length, 0

    def get_seq_length(self):
        return self.seen

    def get_max_length(self):
        return self.cache.geometry.positions


def past(cache, **kwargs):
    layers = range(cache.geometry.layers)
    return Cache(layers=[StreamedLayer(cache, layer, **kwargs) for layer in layers])


@torch.inference_mode()
def main():
    comm = MPI.COMM_WORLD
    torch.manual_seed(0)  # the same random weights on both ranks
    sizes = {"n_layer": 4, "n_head": 4, "n_embd": 64, "vocab_size": 500}
    config = GPT2Config(**sizes, initializer_range=0.2, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config).eval()
    geometry = lib.KVGeometry(4, 2, 4, 64, head_size=16, itemsize=4)
    cache = lib.KVCache.allocate(geometry, torch.float32)
    schedule = lib.StreamSchedule(geometry, geometry.whole, PROMPT, STREAMED_STEPS, SLOT)
    stream, level = lib.Stream(0, schedule, peer=1 - comm.rank), lib.LEVELS["3"]
    tokens = []
    if comm.rank == 0:
        streamer = lib.Streamer(lib.MPIDestination(comm.Dup()), lib.staging(SLOT, 4))
        manager = lib.CacheManager(cache, [stream], level, streamer)
        seen = past(cache, manager=manager)
        manager.begin()
        ids = torch.randint(config.vocab_size, (2, PROMPT))
        for step in range(STREAMED_STEPS + 1 + NEW):
            ids = model(ids, past_key_values=seen).logits[:, -1:].argmax(-1)
            tokens.append(ids)
            if step <= STREAMED_STEPS:
                manager.step_ready(step)
        manager.drain()
        streamer.close()
        comm.send(torch.cat(tokens, 1), dest=1)
        return
    receiver = lib.CacheReceiver(cache, stream, level, lib.MPISinkEndpoint(comm.Dup()))
    receiver.begin()
    lib.receive_all([receiver])
    expected = comm.recv(source=0)
    seen = past(cache, seen=PROMPT + STREAMED_STEPS)
    ids = expected[:, STREAMED_STEPS : STREAMED_STEPS + 1]
    for _ in range(NEW):
        ids = model(ids, past_key_values=seen).logits[:, -1:].argmax(-1)
        tokens.append(ids)
    assert torch.equal(torch.cat(tokens, 1), expected[:, STREAMED_STEPS + 1 :])
    print(f"{schedule.nbytes} bytes streamed; the next {NEW} tokens of each request are the same")


main()

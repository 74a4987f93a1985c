"""Stream the KV cache of a transformers model to another rank's memory, and go on from it there.

mpirun -n 2 python docs/stream_transformers.py

Rank 0 generates; each layer's keys and values leave as soon as they are there. Rank 1 receives, then generates the
same tokens from the cache that came. docs/LIBRARY.md explains it.
"""

import torch
from mpi4py import MPI
from transformers import Cache, GPT2Config, GPT2LMHeadModel
from transformers.cache_utils import CacheLayerMixin

from dejavubench.dejavulib.copies import staging
from dejavubench.dejavulib.destinations.base import Stream
from dejavubench.dejavulib.destinations.mpi import MPIDestination, MPISinkEndpoint
from dejavubench.dejavulib.kvcache import KVCache, KVGeometry
from dejavubench.dejavulib.levels import LEVELS
from dejavubench.dejavulib.manager import CacheManager
from dejavubench.dejavulib.receiver import CacheReceiver, receive_all
from dejavubench.dejavulib.schedule import StreamSchedule
from dejavubench.dejavulib.streamer import Streamer

PROMPT, STREAMED_STEPS, NEW = (
    20,
    4,
    12,
)  # decode steps that are streamed; tokens that rank 1 goes on with
SLOT = 1 << 20  # bytes of a staging slot


class StreamedLayer(CacheLayerMixin):
    """One layer of a KVCache, as transformers wants it; tells the manager, if there is one, what is in place."""

    def __init__(
        self, cache: KVCache, layer: int, seen: int = 0, manager: CacheManager | None = None
    ) -> None:
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


@torch.inference_mode()
def main() -> None:
    comm = MPI.COMM_WORLD
    torch.manual_seed(0)  # the same random weights on both ranks
    config = GPT2Config(
        n_layer=4,
        n_head=4,
        n_embd=64,
        vocab_size=500,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config).eval()
    geometry = KVGeometry(
        config.n_layer, 2, config.n_head, 64, config.n_embd // config.n_head, itemsize=4
    )
    cache = KVCache.allocate(geometry, torch.float32)
    stream = Stream(
        0,
        StreamSchedule(geometry, geometry.whole, PROMPT, STREAMED_STEPS, SLOT),
        peer=1 - comm.rank,
    )
    level = LEVELS["3"]
    if comm.rank == 0:
        streamer = Streamer(MPIDestination(comm.Dup()), staging(SLOT, 4))
        manager = CacheManager(cache, [stream], level, streamer)
        past = Cache(
            layers=[StreamedLayer(cache, n, manager=manager) for n in range(config.n_layer)]
        )
        manager.begin()
        ids = torch.randint(config.vocab_size, (2, PROMPT))
        tokens = []
        for step in range(STREAMED_STEPS + 1 + NEW):
            ids = model(ids, past_key_values=past).logits[:, -1:].argmax(-1)
            tokens.append(ids)
            if step <= STREAMED_STEPS:
                manager.step_ready(step)
        manager.drain()
        streamer.close()
        comm.send(torch.cat(tokens, 1), dest=1)
    else:
        receiver = CacheReceiver(cache, stream, level, MPISinkEndpoint(comm.Dup()))
        receiver.begin()
        receive_all([receiver])
        expected = comm.recv(source=0)
        past = Cache(
            layers=[StreamedLayer(cache, n, PROMPT + STREAMED_STEPS) for n in range(config.n_layer)]
        )
        ids, tokens = expected[:, STREAMED_STEPS : STREAMED_STEPS + 1], []
        for _ in range(NEW):
            ids = model(ids, past_key_values=past).logits[:, -1:].argmax(-1)
            tokens.append(ids)
        assert torch.equal(torch.cat(tokens, 1), expected[:, STREAMED_STEPS + 1 :])
        print(
            f"{stream.schedule.nbytes} bytes streamed; the next {NEW} tokens of each request are the same"
        )


main()

"""The operators of a CPU: kernels of our own for a decode step's few rows, torch's for a prompt."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dejavubench.dejavulib.kv_cache import KVCache
from dejavubench.models.backends import torch_operators
from dejavubench.models.backends.cpu import attention_kernel, code_cache, linear
from dejavubench.models.backends.protocol import (
    QKV,
    Activation,
    Angles,
    HeadNorms,
    KernelNeeds,
    Say,
)

ELEMENTS_PER_BLOCK = 256
"""Elements of a row that :func:`find_largest` takes at once."""


class CpuBackend:
    """See :class:`~.protocol.Backend`."""

    def linear(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        activation: Activation = "none",
        residual: Tensor | None = None,
    ) -> Tensor:
        """Multiply by the compiled kernel if the rows are few, by torch otherwise."""
        return linear.linear(x, weight, bias, activation, residual)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """Normalise by torch, for any number of rows."""
        return F.layer_norm(x, weight.shape, weight, bias, eps)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Normalise by torch, for any number of rows."""
        return torch_operators.rms_norm(x, weight, eps)

    def norm_and_rotate(
        self, q: Tensor, k: Tensor, norms: HeadNorms | None, angles: Angles | None
    ) -> tuple[Tensor, Tensor]:
        """Normalise and rotate by torch, for any number of positions."""
        return torch_operators.norm_and_rotate(q, k, norms, angles)

    def gated_linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation
    ) -> Tensor:
        """Multiply as :meth:`linear`; activate and multiply by torch."""
        return torch_operators.gate(self.linear(x, weight, bias), activation)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        """Attend by torch's fused kernel; grouped heads are not expanded first."""
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=bias, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1]
        )

    def attend_one(
        self,
        q: Tensor,
        cache: KVCache,
        layer: int,
        stop: int,
        slopes: Tensor | None = None,
        prompt_start: Tensor | None = None,
    ) -> Tensor:
        """Attend by the compiled kernel, which reads the cache in its own layout."""
        # The kernel sums in fp32 whatever the cache's type is, so the query comes in fp32.
        out = attention_kernel.attend(
            q.squeeze(2).float(), cache, layer, stop, slopes, prompt_start
        )
        return out.view(len(out), 1, -1).to(q.dtype)

    def store_and_attend(
        self,
        qkv: QKV,
        cache: KVCache,
        layer: int,
        position: Tensor,
        slopes: Tensor | None = None,
    ) -> Tensor:
        """Store one position, then attend by :meth:`attend_one`."""
        newest_position = int(position)
        cache.store(layer, newest_position, qkv.k, qkv.v)
        return self.attend_one(qkv.q, cache, layer, newest_position + 1, slopes)

    def largest(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Find the largest block by block, in vector registers."""
        return find_largest(x)

    def compile(self, needs: KernelNeeds, say: Say) -> None:
        """Load or compile the attention kernel and every linear kernel that the steps take."""
        kernels = [attention_kernel.choose_kernel(needs.dtype, needs.layout)]
        for width in needs.widths:
            for rows in needs.row_counts:
                kernels += linear.choose_kernels(rows, width, needs.dtype, needs.compute_dtype)
        code_cache.provide_kernels(kernels, say)


def find_largest(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest element of each row of [B, n] and its place; of equals the first.

    ``x.max(-1)`` gives the same, but goes through the elements one by one: 50,000 logits took 1 ms.
    """
    # The amax over blocks runs in vector registers; only the winning block is searched.
    blocked_count = x.shape[-1] // ELEMENTS_PER_BLOCK * ELEMENTS_PER_BLOCK
    blocks = (
        [
            x[:, :blocked_count]
            .view(-1, blocked_count // ELEMENTS_PER_BLOCK, ELEMENTS_PER_BLOCK)
            .amax(-1)
        ]
        if blocked_count
        else []
    )
    if blocked_count < x.shape[-1]:
        blocks.append(x[:, blocked_count:].amax(-1, keepdim=True))
    largest_elements, winning_blocks = torch.cat(blocks, dim=-1).max(-1)
    # The place within the first block that has the maximum; a last block may be short.
    indices = torch.arange(ELEMENTS_PER_BLOCK) + winning_blocks.unsqueeze(-1) * ELEMENTS_PER_BLOCK
    return largest_elements, winning_blocks * ELEMENTS_PER_BLOCK + x.gather(
        -1, indices.clamp_(max=x.shape[-1] - 1)
    ).argmax(-1)

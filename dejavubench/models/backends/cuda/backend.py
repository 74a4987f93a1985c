"""The operators of a CUDA device: torch's for a prompt, Triton kernels for a decode step.

The prompt also takes Triton kernels where torch would read the whole prompt several times.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dejavubench.dejavulib.kv_cache import KVCache
from dejavubench.models.backends import torch_operators
from dejavubench.models.backends.cuda import attention, heads, linear
from dejavubench.models.backends.cuda.gate import gate
from dejavubench.models.backends.cuda.launch import KERNEL_TYPES, MOST_ROWS
from dejavubench.models.backends.cuda.norms import layer_norm, rms_norm
from dejavubench.models.backends.protocol import (
    ACTIVATIONS,
    QKV,
    Activation,
    Angles,
    HeadNorms,
    KernelNeeds,
    Say,
)


class CudaBackend:
    """See :class:`~.protocol.Backend`."""

    def linear(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        activation: Activation = "none",
        residual: Tensor | None = None,
    ) -> Tensor:
        """Multiply by the Triton kernel if the rows are few, by cuBLAS otherwise."""
        if _has_kernel(x):
            rows = None if residual is None else residual.flatten(0, -2)
            out = linear.linear(x.flatten(0, -2), weight, bias, activation, rows)
            return out.unflatten(0, x.shape[:-1])
        if activation in ("gelu", "relu") and bias is not None:
            # This product of cuBLAS activates as it writes; torch has no public name for it.
            product = torch._addmm_activation(
                bias, x.flatten(0, -2), weight.T, use_gelu=activation == "gelu"
            )
            out = product.unflatten(0, x.shape[:-1])
        elif activation == "none" and bias is None and residual is not None:
            # The residual is added as cuBLAS writes, which saves three passes over it.
            residual.flatten(0, -2).addmm_(x.flatten(0, -2), weight.T)
            return residual
        else:
            out = ACTIVATIONS[activation](F.linear(x, weight, bias))
        return out if residual is None else out.add_(residual)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """Normalise by the Triton kernel if the rows are few, by torch otherwise."""
        if _has_kernel(x):
            return layer_norm(x.flatten(0, -2), weight, bias, eps).view(x.shape)
        return F.layer_norm(x, weight.shape, weight, bias, eps)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Normalise by the Triton kernel if the rows are few, by torch otherwise."""
        if _has_kernel(x):
            return rms_norm(x.flatten(0, -2), weight, eps).view(x.shape)
        return torch_operators.rms_norm(x, weight, eps)

    def norm_and_rotate(
        self, q: Tensor, k: Tensor, norms: HeadNorms | None, angles: Angles | None
    ) -> tuple[Tensor, Tensor]:
        """Normalise and rotate by one Triton kernel, for any number of positions."""
        if angles is None or q.dtype not in KERNEL_TYPES:
            return torch_operators.norm_and_rotate(q, k, norms, angles)
        return heads.norm_and_rotate(q, k, norms, angles)

    def gated_linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation
    ) -> Tensor:
        """Multiply and gate by one Triton kernel if the rows are few, else gate by one."""
        if _has_kernel(x):
            out = linear.gated_linear(x.flatten(0, -2), weight, bias, activation)
            return out.unflatten(0, x.shape[:-1])
        product = F.linear(x, weight, bias)
        if x.dtype not in KERNEL_TYPES:
            return torch_operators.gate(product, activation)
        return gate(product.flatten(0, -2), activation).unflatten(0, x.shape[:-1])

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        """Attend by torch's fused kernels."""
        if bias is not None:
            bias = (
                bias.clone()
            )  # torch's kernels read whole vectors, which a slice need not begin at
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
        """Attend by torch's kernels over views of the cache; used outside of captured steps."""
        k, v = (x.to(q.dtype) for x in (cache.keys(layer, stop), cache.values(layer, stop)))
        group = q.shape[1] // k.shape[1]
        if slopes is None and prompt_start is None and group > 1:
            # The queries of a group are as many queries of one head.
            grouped = q.unflatten(1, (-1, group)).flatten(2, 3)  # [B, G, group, D]
            return self.attend(grouped, k, v).flatten(1).unsqueeze(1)
        bias = None
        if slopes is not None or prompt_start is not None:
            bias = _bias_of_newest(q, stop, slopes, prompt_start)
        return self.attend(q, k, v, bias).transpose(1, 2).flatten(2)

    def store_and_attend(
        self,
        qkv: QKV,
        cache: KVCache,
        layer: int,
        position: Tensor,
        slopes: Tensor | None = None,
    ) -> Tensor:
        """Store one position and attend to it by one Triton kernel, which can be captured."""
        q, k, v = (x[:, :, 0] for x in qkv)
        return attention.attend(q, k, v, cache, layer, position, slopes).unsqueeze(1)

    def largest(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Find the largest by torch; a value and its place come from one kernel."""
        value, place = x.max(-1)
        return value, place

    def compile(self, needs: KernelNeeds, say: Say) -> None:
        """Return at once: Triton compiles each kernel in the warm-up before a step is captured."""


def _has_kernel(x: Tensor) -> bool:
    """Return whether ``x`` [..., width] is of few rows, in a type that the kernels take."""
    width = x.shape[-1]
    return x.dtype in KERNEL_TYPES and width % 8 == 0 and x.numel() // width <= MOST_ROWS


def _bias_of_newest(
    q: Tensor, stop: int, slopes: Tensor | None, prompt_start: Tensor | None
) -> Tensor:
    """Return the biases of the newest position's scores, [1 or B, 1 or H, 1, stop]."""
    positions = torch.arange(stop, device=q.device)
    bias = torch.zeros(1, 1, 1, stop, device=q.device)
    if slopes is not None:
        bias = slopes.view(1, -1, 1, 1) * (positions - (stop - 1))
    if prompt_start is not None:
        bias = bias.masked_fill(positions < prompt_start.view(-1, 1, 1, 1), float("-inf"))
    return bias.to(q.dtype)

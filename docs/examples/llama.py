"""A small Llama-shaped model and what the example scripts share: sizes, options and synthetic batches.

RMSNorm, rotary positions, grouped-query attention and SwiGLU, as in Llama 3. The attention kernel and the feed-forward
block can be exchanged, which is how the context-parallel and the expert-parallel script change the model.
"""

import argparse
import dataclasses
import os
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclasses.dataclass(frozen=True)
class Config:
    """The sizes of a model; `length` is the longest sequence that it takes."""

    dim: int
    layers: int
    heads: int
    kv_heads: int
    hidden: int
    vocab: int
    length: int
    theta: float = 500_000.0
    eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        """The width of one attention head."""
        return self.dim // self.heads


CONFIGS = {
    "tiny": Config(dim=64, layers=4, heads=8, kv_heads=4, hidden=176, vocab=512, length=64),
    "8b": Config(dim=4096, layers=32, heads=32, kv_heads=8, hidden=14336, vocab=128256, length=8192),
}


class RMSNorm(nn.Module):
    """Divide by the root mean square over the last dim, then scale."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `x`, of any shape that ends in dim."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the two halves of every head of `x` (batch, length, heads, head_dim) by its position's angles."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of (batch, heads, length, head_dim); k and v may have fewer heads than q."""
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: Config, kernel: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.kernel = kernel
        self.wq = nn.Linear(config.dim, config.heads * config.head_dim, bias=False)
        self.wk = nn.Linear(config.dim, config.kv_heads * config.head_dim, bias=False)
        self.wv = nn.Linear(config.dim, config.kv_heads * config.head_dim, bias=False)
        self.wo = nn.Linear(config.heads * config.head_dim, config.dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Attend within each sequence of `x` (batch, length, dim)."""
        # -1, not the configured number of heads: under tensor parallelism each rank holds only some of them.
        q, k, v = (w(x).unflatten(-1, (-1, self.head_dim)) for w in (self.wq, self.wk, self.wv))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y = self.kernel(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.wo(y.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.hidden, bias=False)
        self.w2 = nn.Linear(config.hidden, config.dim, bias=False)
        self.w3 = nn.Linear(config.dim, config.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token of `x` (…, dim)."""
        return self.w2(functional.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    """One transformer layer, pre-norm."""

    def __init__(self, config: Config, kernel: Callable[..., Tensor], feed_forward: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(config.dim, config.eps)
        self.attn = Attention(config, kernel)
        self.ffn_norm = RMSNorm(config.dim, config.eps)
        self.ffn = feed_forward(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Apply the layer to `x` (batch, length, dim)."""
        x = x + self.attn(self.attn_norm(x), cos, sin)
        return x + self.ffn(self.ffn_norm(x))


class Llama(nn.Module):
    """The model. Embedding, norm and output may be None in a pipeline stage that does not hold them."""

    def __init__(
        self,
        config: Config,
        kernel: Callable[[Tensor, Tensor, Tensor], Tensor] = attend,
        feed_forward: Callable[[Config], nn.Module] = FeedForward,
    ) -> None:
        super().__init__()
        self.config = config
        self.embed: nn.Embedding | None = nn.Embedding(config.vocab, config.dim)
        # By number and not in a list, so that a layer keeps its name in a pipeline stage that holds only some.
        self.layers = nn.ModuleDict({str(i): Block(config, kernel, feed_forward) for i in range(config.layers)})
        self.norm: RMSNorm | None = RMSNorm(config.dim, config.eps)
        self.output: nn.Linear | None = nn.Linear(config.dim, config.vocab, bias=False)
        for name in ("cos", "sin"):
            self.register_buffer(name, torch.empty(config.length, config.head_dim // 2), persistent=False)

    def init_weights(self, seed: int = 0) -> None:
        """Fill the parameters and the tables of angles, also after `to_empty`.

        Each part has its own seed, so that a pipeline stage draws what the whole model would have drawn.
        """
        config, half = self.config, self.config.head_dim // 2
        frequencies = config.theta ** -(torch.arange(half, device=self.cos.device) / half)
        angles = torch.outer(torch.arange(config.length, device=self.cos.device), frequencies)
        self.cos.copy_(angles.cos())
        self.sin.copy_(angles.sin())
        parts = [(-1, self.embed), (-2, self.norm), (-3, self.output)]
        parts += [(int(number), layer) for number, layer in self.layers.items()]
        for number, part in parts:
            torch.manual_seed(1_000 * (seed + 1) + number)
            for module in part.modules() if part is not None else ():
                if isinstance(module, RMSNorm):
                    nn.init.ones_(module.weight)
                elif isinstance(module, nn.Linear | nn.Embedding):
                    nn.init.normal_(module.weight, std=0.02)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """Map tokens (batch, length), the first at position `start`, to logits (batch, length, vocab)."""
        length = x.shape[1]
        if self.embed is not None:
            x = self.embed(x)
        cos, sin = self.cos[start : start + length], self.sin[start : start + length]
        for layer in self.layers.values():
            x = layer(x, cos, sin)
        if self.norm is not None:
            x = self.norm(x)
        return self.output(x) if self.output is not None else x


def measure_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean cross entropy of logits (batch, length, vocab) against targets (batch, length)."""
    return functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def draw_batch(config: Config, *, size: int, length: int, rank: int, step: int) -> tuple[Tensor, Tensor]:
    """The tokens and targets, (size, length) each, that one data-parallel rank sees at one step; on the CPU."""
    generator = torch.Generator().manual_seed(100_003 * step + rank)
    tokens = torch.randint(config.vocab, (size, length + 1), generator=generator)
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def make_parser(description: str) -> argparse.ArgumentParser:
    """The options that every example takes."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--config", choices=CONFIGS, default="tiny", help="the sizes of the model")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cpu uses gloo, cuda uses nccl")
    parser.add_argument("--steps", type=int, default=2, help="optimizer steps")
    parser.add_argument("--batch", type=int, default=4, help="sequences per data-parallel rank")
    parser.add_argument("--length", type=int, default=32, help="tokens per sequence")
    return parser


def choose_device(kind: str) -> torch.device:
    """This process's device of the kind: under torchrun, each local rank has a GPU of its own."""
    if kind == "cpu":
        return torch.device("cpu")
    device = torch.device(kind, int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device

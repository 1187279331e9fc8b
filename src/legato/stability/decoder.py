"""The paper's model: a small decoder-only Transformer whose attention logits can be normalised or not."""

import math
from typing import final

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from legato import errors

LAYER_NORM_EPS = 1e-6
TRUNCATED = 0.8796256610342398
"""Standard deviation of a standard normal that is cut at -2 and 2."""
ROTARY_BASE = 10000.0


def truncated_normal_(weight: Tensor, deviation: float, generator: Generator | None = None) -> Tensor:
    """Fill with normal numbers cut at two deviations, whose standard deviation after the cut is `deviation`.

    sigma = deviation / 0.8796, cut at -2 sigma and 2 sigma; without the division the deviation would be 12% less.

    Args:
        weight: any shape, filled in place.
        deviation: > 0.
        generator: of random numbers, on the device of the weight.
    Returns: the weight.
    """
    sigma = deviation / TRUNCATED
    return nn.init.trunc_normal_(weight, std=sigma, a=-2 * sigma, b=2 * sigma, generator=generator)


def rotary_table(length: int, head_dim: int, base: float = ROTARY_BASE) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary positions: angle[t, i] = t * base^(-2 i / head_dim), i < head_dim / 2, twice side by side.

    Args:
        length: positions T.
        head_dim: D, even.
    Returns: two float32 tensors [T, D].
    Source: Su et al. 2021, arXiv 2104.09864; halves instead of neighbours are paired, as most code does.
    """
    frequency = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency
    angle = torch.cat([angle, angle], 1)
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i + D/2}) of [..., T, D] by its position's angle; keeps every norm."""
    first, second = x.chunk(2, -1)
    return x * cosine + torch.cat([-second, first], -1) * sine


@final
class Attention(nn.Module):
    """Causal self-attention: softmax_j<=i(scale * <q_i, k_j>) v_j, with rotary positions, and no biases.

    Args:
        width, heads: of the model; each head has D = width / heads.
        qk_norm: layer normalisation of queries and keys, head by head before the rotation, with one gain [D] for all heads.
        scale: of the logits; 1 / sqrt(D) by default.
    """

    def __init__(self, width: int, heads: int, *, qk_norm: bool, scale: float | None = None) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, width // heads
        self.scale = 1 / math.sqrt(self.head_dim) if scale is None else scale
        self.query, self.key, self.value, self.output = (_linear(width, width) for _ in range(4))
        self.query_norm, self.key_norm = (_norm(self.head_dim) if qk_norm else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """[B, T, width] -> the same."""
        split = (*x.shape[:-1], self.heads, self.head_dim)
        query, key = (
            rotate(norm(layer(x).view(split)).transpose(1, 2), cosine, sine)
            for layer, norm in ((self.query, self.query_norm), (self.key, self.key_norm))
        )
        value = self.value(x).view(split).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=self.scale)
        out: Tensor = self.output(mixed.transpose(1, 2).flatten(-2))
        return out


@final
class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), with a hidden layer of 4 * width and gelu."""

    def __init__(self, width: int, heads: int, *, qk_norm: bool, scale: float | None = None) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = _norm(width), _norm(width)
        self.attention = Attention(width, heads, qk_norm=qk_norm, scale=scale)
        self.up, self.down = _linear(width, 4 * width), _linear(4 * width, width)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """[B, T, width] -> the same."""
        x = x + self.attention(self.attention_norm(x), cosine, sine)
        out: Tensor = x + self.down(F.gelu(self.up(self.mlp_norm(x))))
        return out


@final
class Decoder(nn.Module):
    """Tokens -> logits of the next token: pre-norm, rotary, no biases, embedding and head not tied.

    logits = head(norm(x_L)),  x_{l+1} = block_l(x_l),  x_0 = embedding(tokens).

    `size` is N = 12 * depth * width^2, the weights of all blocks without gains, embedding and head: what the paper plots against.
    Weights start truncated normal with deviation 1/sqrt(fan in), the embedding normal with 1/sqrt(width), gains at 1.

    Args:
        vocabulary: V >= 2, tokens 0 .. V - 1.
        width: a multiple of `heads`; width / heads must be even.
        depth: blocks, >= 1.
        heads: >= 1.
        length: T, the longest sequence.
        qk_norm: layer normalisation of queries and keys in every head: |q|, |k| <= sqrt(D) * largest gain.
        attention_scale: of the attention logits; None is 1 / sqrt(D).
        generator: of the weights; None draws from torch's global one.
    Raises: LegatoValueError for sizes that do not fit.
    Source: Wortsman et al. 2024, arXiv 2309.14322, section 2.1.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int,
        depth: int,
        heads: int,
        *,
        length: int = 512,
        qk_norm: bool = True,
        attention_scale: float | None = None,
        generator: Generator | None = None,
    ) -> None:
        _check_sizes(vocabulary, width, depth, heads, length)
        super().__init__()
        self.vocabulary, self.width, self.depth, self.length = vocabulary, width, depth, length
        self.embedding = nn.utils.skip_init(nn.Embedding, vocabulary, width, device=torch.get_default_device())
        self.blocks = nn.ModuleList(Block(width, heads, qk_norm=qk_norm, scale=attention_scale) for _ in range(depth))
        self.norm = _norm(width)
        self.head = _linear(width, vocabulary)
        for name in ("cosine", "sine"):
            self.register_buffer(name, torch.empty(length, width // heads), persistent=False)
        self.reset_parameters(generator)

    @property
    def size(self) -> int:
        """N = 12 * depth * width^2."""
        return sum(weight.numel() for weight in self.blocks.parameters() if weight.dim() == 2)

    @torch.no_grad()
    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Draw all weights anew, and make the tables of the rotation: what a model needs that was built on the device `meta`."""
        head_dim = self.get_buffer("cosine").shape[1]
        for name, table in zip(("cosine", "sine"), rotary_table(self.length, head_dim), strict=True):
            self.get_buffer(name).copy_(table)
        nn.init.normal_(self.embedding.weight, std=self.width**-0.5, generator=generator)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                truncated_normal_(module.weight, module.in_features**-0.5, generator)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 [B, T] -> logits [B, T, V].

        Raises: LegatoValueError for more tokens than `length`.
        """
        steps = tokens.shape[-1]
        if tokens.dim() != 2 or steps > self.length:
            raise errors.argument(
                "tokens",
                expected=f"shape [B, T] with T <= {self.length}",
                got=list(tokens.shape),
                fix="a larger length",
            )
        x = self.embedding(tokens)
        cosine, sine = self.get_buffer("cosine")[:steps], self.get_buffer("sine")[:steps]
        for block in self.blocks:
            x = block(x, cosine, sine)
        logits: Tensor = self.head(self.norm(x))
        return logits


def _check_sizes(vocabulary: int, width: int, depth: int, heads: int, length: int) -> None:
    for name, value, least in (("vocabulary", vocabulary, 2), ("width", width, 1), ("depth", depth, 1), ("heads", heads, 1), ("length", length, 1)):  # fmt: skip
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise errors.argument(name, expected=f"a whole number >= {least}", got=value)
    if width % heads:
        raise errors.argument("heads", expected=f"a divisor of the width {width}", got=heads)
    if width // heads % 2:
        raise errors.argument(
            "heads", expected="an even width of each head, since rotary positions turn pairs",
            got=f"{width} / {heads} = {width // heads}",
        )  # fmt: skip


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """Without biases, and not filled: `reset_parameters` does so from the generator."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=False, device=torch.get_default_device())
    return layer


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=LAYER_NORM_EPS, bias=False)

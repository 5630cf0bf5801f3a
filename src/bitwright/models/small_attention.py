"""Small transformers for tests, never trained: one encoder block of a vision transformer, and one of BERT.

Sources: A. Vaswani et al., "Attention Is All You Need", 2017, https://arxiv.org/abs/1706.03762; A. Dosovitskiy et al.,
"An Image is Worth 16x16 Words", 2020, https://arxiv.org/abs/2010.11929; J. Devlin et al., "BERT", 2018,
https://arxiv.org/abs/1810.04805.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitwright.models.initialise import Network, randomised, seeded


class Attention(nn.Module):
    """`softmax(q k' / sqrt(d)) v` for each head, then a linear layer; `[n, tokens, width]`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """What each token gathers from all tokens."""
        q, k, v = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        weights = torch.softmax(q @ k.transpose(2, 3) * q.shape[3] ** -0.5, dim=3)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


def feed_forward(width: int) -> nn.Sequential:
    """Two linear layers with GELU between them, four times as wide inside."""
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class ViT(Network):
    """Patches of 4x4 pixels, a class token, one block with layer norm first; `[n, 3, 16, 16] -> [n, 10]`."""

    input_shape = (3, 16, 16)

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.class_token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.3 * torch.randn(1, 17, width))
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = feed_forward(width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        x = x + self.attention(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return self.head(self.norm(x)[:, 0])


class Bert(Network):
    """Embeddings, one block with layer norm last, the pooler of the first token; `[n, 12] int64 -> [n, 2]`."""

    input_shape = (12,)
    vocabulary = 40

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.words = nn.Embedding(self.vocabulary, width)
        self.positions = nn.Parameter(0.3 * torch.randn(1, self.input_shape[0], width))
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.mlp = feed_forward(width)
        self.norm2 = nn.LayerNorm(width)
        self.pooler = nn.Linear(width, width)
        self.classifier = nn.Linear(width, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        """The logits."""
        x = self.norm(self.words(tokens) + self.positions)
        x = self.norm1(x + self.attention(x))
        x = self.norm2(x + self.mlp(x))
        return self.classifier(torch.tanh(self.pooler(x[:, 0])))


def small_vit(*, seed: int = 0) -> Network:
    """A vision transformer of one block: layer norm, attention, GELU."""
    with seeded(seed):
        return randomised(ViT(24, 3))


def small_bert(*, seed: int = 0) -> Network:
    """A BERT of one block, which reads token numbers."""
    with seeded(seed):
        return randomised(Bert(24, 3))

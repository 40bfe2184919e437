"""Heads as they were published, one token after another: no tree, no slots, no masks, in float64 and with the names of the files.

Each reads a text token by token and then one path of drafted tokens, with lists of keys and values. It is the slow twin of `treespec.models.heads`.
"""

import cmath
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]


def norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return x / math.sqrt(float((x * x).sum()) / len(x) + epsilon) * weight


def turn(width: int, pair: int, rope: Mapping[str, Any]) -> float:
    """Radians by which a pair of numbers of a head is turned from one position to the next."""
    radians = float(rope.get("rope_theta", 10_000.0)) ** (-2 * pair / width)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return radians
    slow = radians / rope["factor"]
    if kind == "linear":
        return slow
    if kind == "yarn":
        whole = rope["original_max_position_embeddings"]
        ends = [width * math.log(whole / (2 * math.pi * turns)) / (2 * math.log(rope["rope_theta"])) for turns in (32, 1)]
        low, high = max(0, math.floor(ends[0])), min(width - 1, math.ceil(ends[1]))
        share = 1 - min(1.0, max(0.0, (pair - low) / (high - low)))
        return share * radians + (1 - share) * slow
    assert kind == "llama3"
    turns = rope["original_max_position_embeddings"] * radians / (2 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    share = min(1.0, max(0.0, (turns - low) / (high - low)))
    return share * radians + (1 - share) * slow


def stretch(rope: Mapping[str, Any]) -> float:
    """The factor of queries and keys, which YaRN has."""
    return 0.1 * math.log(rope["factor"]) + 1 if rope.get("rope_type") == "yarn" else 1.0


def turned(x: Tensor, position: int, rope: Mapping[str, Any]) -> Tensor:
    """One head's numbers at a position: number i and number i + half are a complex number, which is turned."""
    half = len(x) // 2
    pairs = [stretch(rope) * complex(x[i], x[i + half]) * cmath.exp(1j * position * turn(len(x), i, rope)) for i in range(half)]
    return torch.tensor([*(pair.real for pair in pairs), *(pair.imag for pair in pairs)], dtype=torch.float64)


@dataclass
class Memory:
    """The keys and values that one layer has seen, a list of heads per token."""

    keys: list[list[Tensor]] = field(default_factory=list)
    values: list[list[Tensor]] = field(default_factory=list)

    def copy(self) -> "Memory":
        return Memory([*self.keys], [*self.values])


@dataclass(frozen=True)
class Sizes:
    """What a file's tensors do not tell."""

    heads: int
    shared: int
    width: int
    epsilon: float
    rope: Mapping[str, Any]


def projected(part: str, y: Tensor, weights: Weights, prefix: str) -> Tensor:
    bias = weights.get(f"{prefix}.self_attn.{part}_proj.bias")
    found = weights[f"{prefix}.self_attn.{part}_proj.weight"] @ y
    return found if bias is None else found + bias


def remembered(x: Tensor, weights: Weights, prefix: str, memory: Memory, sizes: Sizes) -> None:
    """Add what a layer reads of a token as the next key and value."""
    k, v = (projected(part, x, weights, prefix).split(sizes.width) for part in "kv")
    scale = weights.get(f"{prefix}.self_attn.k_norm.weight")
    k = k if scale is None else [norm(head, scale, sizes.epsilon) for head in k]
    memory.values.append(list(v))
    memory.keys.append([turned(head, len(memory.keys), sizes.rope) for head in k])


def attended(x: Tensor, position: int, weights: Weights, prefix: str, memory: Memory, sizes: Sizes) -> Tensor:
    """What a token at a position makes of all that a layer remembers."""
    q = projected("q", x, weights, prefix).split(sizes.width)
    scale = weights.get(f"{prefix}.self_attn.q_norm.weight")
    q = q if scale is None else [norm(head, scale, sizes.epsilon) for head in q]
    found = []
    for head in range(sizes.heads):
        group = head * sizes.shared // sizes.heads
        query = turned(q[head], position, sizes.rope)
        scores = [float(query @ keys[group]) / math.sqrt(sizes.width) for keys in memory.keys]
        shares = [math.exp(score - max(scores)) for score in scores]
        weighed = [share / sum(shares) * values[group] for share, values in zip(shares, memory.values, strict=True)]
        found.append(torch.stack(weighed).sum(0))
    return projected("o", torch.cat(found), weights, prefix)


def attention(x: Tensor, weights: Weights, prefix: str, memory: Memory, sizes: Sizes) -> Tensor:
    remembered(x, weights, prefix, memory, sizes)
    return attended(x, len(memory.keys) - 1, weights, prefix, memory, sizes)


def mlp(x: Tensor, weights: Weights, prefix: str) -> Tensor:
    gate, up = (weights[f"{prefix}.mlp.{part}_proj.weight"] @ x for part in ("gate", "up"))
    return weights[f"{prefix}.mlp.down_proj.weight"] @ (gate / (1 + torch.exp(-gate)) * up)


@dataclass(frozen=True)
class Eagle3:
    """EAGLE-3. `weights` have the names of the file, but for the layer, whose prefixes are `layers`."""

    weights: Weights
    layers: Sequence[str]
    sizes: Sizes
    embedding: Tensor
    lm_head: Tensor
    norm_before_residual: bool = False
    norm_output: bool = False

    def fused(self, states: Tensor) -> Tensor:
        """g of the states [n, Ht] before one token."""
        rows = list(states)
        for place in range(len(rows)):
            if f"fc_norm.{place}.weight" in self.weights:
                rows[place] = norm(rows[place], self.weights[f"fc_norm.{place}.weight"], self.sizes.epsilon)
        joined = torch.cat(rows)
        if "input_norm.weight" in self.weights:
            joined = norm(joined, self.weights["input_norm.weight"], self.sizes.epsilon)
        found = self.weights["fc.weight"] @ joined
        return found + self.weights["fc.bias"] if "fc.bias" in self.weights else found

    def step(self, token: int, g: Tensor, memories: Sequence[Memory]) -> tuple[Tensor, Tensor]:
        """Logits after a token that is read with g, and the next g."""
        first, w, epsilon = self.layers[0], self.weights, self.sizes.epsilon
        hidden = norm(g, w[f"{first}.hidden_norm.weight"], epsilon)
        embedded = norm(self.embedding[token], w[f"{first}.input_layernorm.weight"], epsilon)
        r = hidden if self.norm_before_residual else g
        r = r + attention(torch.cat([embedded, hidden]), w, first, memories[0], self.sizes)
        r = r + mlp(norm(r, w[f"{first}.post_attention_layernorm.weight"], epsilon), w, first)
        for prefix, memory in zip(self.layers[1:], memories[1:], strict=True):
            r = r + attention(norm(r, w[f"{prefix}.input_layernorm.weight"], epsilon), w, prefix, memory, self.sizes)
            r = r + mlp(norm(r, w[f"{prefix}.post_attention_layernorm.weight"], epsilon), w, prefix)
        normed = norm(r, w["norm.weight"], epsilon)
        return self.lm_head @ normed, normed if self.norm_output else r

    def along(self, states: Tensor, tokens: Sequence[int], path: Sequence[int]) -> Tensor:
        """Logits after a path that follows the text's tokens, each of which stands beside the states [n, Ht] before it."""
        memories = [Memory() for _ in self.layers]
        for token, state in zip(tokens, states, strict=True):
            logits, g = self.step(token, self.fused(state), memories)
        for token in path:
            logits, g = self.step(token, g, memories)
        return logits


@dataclass(frozen=True)
class Eagle:
    """EAGLE-1 and EAGLE-2, with the names of the file."""

    weights: Weights
    layers: int
    sizes: Sizes
    embedding: Tensor
    lm_head: Tensor

    def step(self, token: int, state: Tensor, memories: Sequence[Memory]) -> tuple[Tensor, Tensor]:
        """Logits after a token that is read with a state, and the next state."""
        w, epsilon = self.weights, self.sizes.epsilon
        r = w["fc.weight"] @ torch.cat([self.embedding[token], state])
        r = r + w["fc.bias"] if "fc.bias" in w else r
        for number in range(self.layers):
            prefix = f"layers.{number}"
            normed = norm(r, w[f"{prefix}.input_layernorm.weight"], epsilon) if number else r
            r = r + attention(normed, w, prefix, memories[number], self.sizes)
            r = r + mlp(norm(r, w[f"{prefix}.post_attention_layernorm.weight"], epsilon), w, prefix)
        return self.lm_head @ r, r

    def along(self, states: Tensor, tokens: Sequence[int], path: Sequence[int]) -> Tensor:
        """Logits after a path that follows the text's tokens, each of which stands beside the state [1, Ht] before it."""
        memories = [Memory() for _ in range(self.layers)]
        for token, state in zip(tokens, states, strict=True):
            logits, g = self.step(token, state[0], memories)
        for token in path:
            logits, g = self.step(token, g, memories)
        return logits


@dataclass(frozen=True)
class DFlash:
    """DFlash, with the names of the file."""

    weights: Weights
    layers: int
    sizes: Sizes
    embedding: Tensor
    lm_head: Tensor
    block: int
    mask: int

    def filled(self, states: Tensor, root: int) -> list[Tensor]:
        """Logits at every place of the block that begins with a root, after tokens with these states [n, Ht] each."""
        w, epsilon = self.weights, self.sizes.epsilon
        features = [norm(w["fc.weight"] @ torch.cat(list(state)), w["hidden_norm.weight"], epsilon) for state in states]
        rows = [self.embedding[root], *[self.embedding[self.mask]] * (self.block - 1)]
        for number in range(self.layers):
            prefix, memory = f"layers.{number}", Memory()
            normed = [norm(r, w[f"{prefix}.input_layernorm.weight"], epsilon) for r in rows]
            for x in (*features, *normed):
                remembered(x, w, prefix, memory, self.sizes)
            for place, x in enumerate(normed):
                rows[place] = rows[place] + attended(x, len(features) + place, w, prefix, memory, self.sizes)
            rows = [r + mlp(norm(r, w[f"{prefix}.post_attention_layernorm.weight"], epsilon), w, prefix) for r in rows]
        return [self.lm_head @ norm(r, w["norm.weight"], epsilon) for r in rows]

    def along(self, states: Tensor, tokens: Sequence[int], path: Sequence[int]) -> Tensor:
        """Logits after a path below the last of the text's tokens; states [n, Ht] are those before each of them. The path itself is not read."""
        return self.filled(states, tokens[-1])[len(path) + 1]


def medusa(weights: Weights, state: Tensor, head: int, layers: int, lm_head: Tensor) -> Tensor:
    """Logits of one Medusa head after a state [H]; `lm_head` makes them where the head has no matrix."""
    for layer in range(layers):
        y = weights[f"{head}.{layer}.linear.weight"] @ state + weights[f"{head}.{layer}.linear.bias"]
        state = state + y / (1 + torch.exp(-y))
    return weights.get(f"{head}.{layers}.weight", lm_head) @ state

"""One decode step of an 8B-shaped transformer with synthetic weights, captured as a CUDA graph as engines do."""

from dataclasses import dataclass

import torch
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class StepShape:
    """Llama-3-8B's shape, and what is decoded: `batch` sequences with `context` tokens of KV each."""

    layers: int = 32
    hidden: int = 4096
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    intermediate: int = 14336
    vocabulary: int = 128256
    batch: int = 16
    context: int = 2048


class DecodeStep:
    """Replays the step on the current stream; weights, caches and activations are bfloat16 on the current device."""

    def __init__(self, shape: StepShape) -> None:
        self.shape = shape
        self._layers = [self._layer() for _ in range(shape.layers)]
        self._embedding = self._weight(shape.vocabulary, shape.hidden)
        self._tokens = torch.zeros(shape.batch, dtype=torch.int64, device="cuda")
        self._graph = self._capture()

    def replay(self) -> None:
        """Submit one step."""
        self._graph.replay()

    def _weight(self, *size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.bfloat16, device="cuda").normal_(std=0.02)

    def _layer(self) -> dict[str, torch.Tensor]:
        shape = self.shape
        width, kv_width = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        cache = (shape.batch, shape.kv_heads, shape.context, shape.head_dim)
        return {
            "qkv": self._weight(width + 2 * kv_width, shape.hidden),
            "out": self._weight(shape.hidden, width),
            "gate_up": self._weight(2 * shape.intermediate, shape.hidden),
            "down": self._weight(shape.hidden, shape.intermediate),
            "norm": self._weight(2, shape.hidden),
            "keys": self._weight(*cache),
            "values": self._weight(*cache),
        }

    def _capture(self) -> torch.cuda.CUDAGraph:
        for _ in range(3):
            self._forward()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._output = self._forward()
        return graph

    @torch.no_grad()
    def _forward(self) -> torch.Tensor:
        hidden = functional.embedding(self._tokens, self._embedding)
        for layer in self._layers:
            hidden = hidden + self._attention(layer, self._normed(hidden, layer["norm"][0]))
            gate, up = (self._normed(hidden, layer["norm"][1]) @ layer["gate_up"].T).chunk(2, dim=-1)
            hidden = hidden + (functional.silu(gate) * up) @ layer["down"].T
        return (hidden @ self._embedding.T).argmax(dim=-1)

    def _attention(self, layer: dict[str, torch.Tensor], hidden: torch.Tensor) -> torch.Tensor:
        """Grouped heads stand as further queries of their KV head, so that K and V are read once."""
        shape = self.shape
        grouped = (shape.batch, shape.kv_heads, shape.heads // shape.kv_heads, shape.head_dim)
        projected = hidden @ layer["qkv"].T
        queries = projected[:, : shape.heads * shape.head_dim].reshape(grouped)
        fresh = projected[:, shape.heads * shape.head_dim :].view(shape.batch, 2, shape.kv_heads, shape.head_dim)
        layer["keys"][:, :, -1] = fresh[:, 0]
        layer["values"][:, :, -1] = fresh[:, 1]
        answer = functional.scaled_dot_product_attention(queries, layer["keys"], layer["values"])
        return answer.reshape(shape.batch, -1) @ layer["out"].T

    def _normed(self, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(hidden, (self.shape.hidden,), weight)

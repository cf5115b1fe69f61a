"""How much a lossy KV cache changes what the model says: KL divergence and top-1 agreement over forced positions.

The KV of a prefix is replaced by its reconstruction, the following text is teacher-forced, and the logits of every
position are compared with those over the exact prefix. Runs in the engine environment (torch, transformers).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.cache_utils import DynamicCache

PREFIX_TOKENS = 1792
FORCED_TOKENS = 384

Reconstruct = Callable[[torch.Tensor], torch.Tensor]
"""KV of the prefix, `[layers][2][tokens][kv heads * head dim]` bfloat16, to the same shape and dtype."""


@dataclass(frozen=True, slots=True)
class Quality:
    """What a reconstruction did to the text's predictions. KL in nats, mean over positions."""

    kl: float
    top1: float
    perplexity: float


class ForcedText:
    """One text: its prefix KV, and the exact model's log-probabilities of the forced positions."""

    def __init__(self, model_path: str, text: str) -> None:
        tokenizer = AutoTokenizer.from_pretrained(model_path)
        self._model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()
        ids = tokenizer(text, return_tensors="pt").input_ids[:, : PREFIX_TOKENS + FORCED_TOKENS]
        if ids.shape[1] < PREFIX_TOKENS + FORCED_TOKENS:
            raise ValueError(f"the text has {ids.shape[1]} tokens; {PREFIX_TOKENS + FORCED_TOKENS} are needed")
        self._prefix, self._forced = ids[:, :PREFIX_TOKENS], ids[:, PREFIX_TOKENS:]
        with torch.inference_mode():
            layers = self._model(self._prefix, use_cache=True).past_key_values.layers
        self.head_dim = layers[0].keys.shape[-1]
        self.kv = torch.stack(
            [torch.stack([_to_canonical(layer.keys), _to_canonical(layer.values)]) for layer in layers]
        )
        self._exact = self._log_probabilities(self.kv)

    def judge(self, reconstruct: Reconstruct) -> Quality:
        """Return the quality of the predictions over the reconstructed prefix."""
        found = self._log_probabilities(reconstruct(self.kv))
        kl = (self._exact.exp() * (self._exact - found)).sum(-1).mean()
        top1 = (found.argmax(-1) == self._exact.argmax(-1)).float().mean()
        loss = -found[:-1].gather(-1, self._forced[0, 1:, None]).mean()
        return Quality(kl=kl.item(), top1=top1.item(), perplexity=loss.exp().item())

    def _log_probabilities(self, kv: torch.Tensor) -> torch.Tensor:
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(kv):
            cache.update(_from_canonical(keys, self.head_dim), _from_canonical(values, self.head_dim), layer)
        with torch.inference_mode():
            logits = self._model(self._forced, past_key_values=cache, use_cache=True).logits[0]
        return logits.float().log_softmax(-1)


def _to_canonical(heads: torch.Tensor) -> torch.Tensor:
    """`[1][heads][tokens][dim]` float32 to `[tokens][heads * dim]` bfloat16."""
    return heads[0].transpose(0, 1).flatten(1).to(torch.bfloat16)


def _from_canonical(plane: torch.Tensor, head_dim: int) -> torch.Tensor:
    return plane.float().unflatten(1, (-1, head_dim)).transpose(0, 1)[None].contiguous()

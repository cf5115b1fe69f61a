"""Writes the KV cache of real texts: `make_kv.py MODEL_FOLDER OUTPUT_FOLDER`. Runs in the engine environment.

One file a text: its whole chunks of 256 tokens, one after the other, each in canonical layout, bfloat16. And
shape.json.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from shadowserve_lab.texts import real_texts

CHUNK_TOKENS = 256
MAX_TOKENS = 4096


def write(model_folder: Path, output: Path) -> None:
    """Write the KV of every text."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    shape: dict[str, object] = {}
    for name, text in real_texts().items():
        ids = tokenizer(text, return_tensors="pt").input_ids[:, :MAX_TOKENS]
        ids = ids[:, : ids.shape[1] // CHUNK_TOKENS * CHUNK_TOKENS]
        with torch.inference_mode():
            layers = model.model(ids, use_cache=True).past_key_values.layers
        planes = [_canonical(half) for layer in layers for half in (layer.keys, layer.values)]
        _, heads, _, head_dim = layers[0].keys.shape
        shape = {"layers": len(layers), "kv_heads": heads, "head_dim": head_dim, "dtype": "bfloat16"}
        _write_chunks(torch.stack(planes), output / f"{name}.kv")
    (output / "shape.json").write_text(json.dumps(shape))


def _canonical(heads: torch.Tensor) -> torch.Tensor:
    """`[1][heads][tokens][dim]` to `[tokens][heads * dim]` bfloat16."""
    return heads[0].transpose(0, 1).flatten(1).to(torch.bfloat16)


def _write_chunks(planes: torch.Tensor, file: Path) -> None:
    with file.open("wb") as out:
        for chunk in planes.split(CHUNK_TOKENS, dim=1):
            out.write(chunk.contiguous().view(torch.uint8).numpy().tobytes())


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))

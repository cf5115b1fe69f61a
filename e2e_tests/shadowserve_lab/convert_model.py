"""Converts the model's GGUF file to Hugging Face's layout: `convert_model.py GGUF_FOLDER OUTPUT_FOLDER`.

Runs in the engine environment, with `gguf` and `accelerate` on the path. transformers reads GGUF but refuses to save
what it read ("quantized with gguf"), so a fresh configuration without the quantization takes the weights over.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

_OF_THE_FILE = ("quantization_config", "_name_or_path", "transformers_version", "model_type", "architectures")


def convert(source: Path, target: Path) -> None:
    """Write tokenizer, configuration and bfloat16 weights of the one GGUF file in `source` to `target`."""
    gguf = next(source.glob("*.gguf")).name
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf)
    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=gguf, dtype=torch.float32)
    settings = {key: value for key, value in loaded.config.to_dict().items() if key not in _OF_THE_FILE}
    model = LlamaForCausalLM(LlamaConfig(**{**settings, "dtype": "bfloat16"})).float()
    model.load_state_dict({key: value.float() for key, value in loaded.state_dict().items()}, strict=False)
    model.tie_weights()
    _check_equal(loaded, model)
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.generation_config.bos_token_id, model.generation_config.pad_token_id = 1, 2
    model.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)


def _check_equal(expected: torch.nn.Module, found: torch.nn.Module) -> None:
    tokens = torch.arange(1, 40)[None]
    with torch.inference_mode():
        difference = (expected(tokens).logits - found(tokens).logits).abs().max().item()
    if difference:
        raise SystemExit(f"the converted model differs from the GGUF file: logits by up to {difference}")


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))

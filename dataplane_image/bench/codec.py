"""What a tier saves and what it does to the model's predictions: bytes against KL divergence and top-1 agreement, over
384 teacher-forced positions of each text, beside fp8 and per-token int8. `make bench-codec`.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from quality import FORCED_TOKENS, PREFIX_TOKENS, ForcedText
from results import Goal, Result, Wanted, emit

from shadowserve_dataplane.chunks import CHUNK_TOKENS, ChunkKey, KvDtype, KvShape
from shadowserve_dataplane.codec.decode import FrameDecoder
from shadowserve_dataplane.codec.encode import Encoder
from shadowserve_dataplane.codec.format import Expected, Limits, parse_header
from shadowserve_dataplane.codec.landed import HEADER_BYTES, LandedLayout
from shadowserve_dataplane.codec.tiers import LandingMode, Tier
from shadowserve_lab.texts import real_texts

_BENCH = "codec"
_KEY = ChunkKey(bytes(32))
_KL_GOALS = {Tier.HIGH: 2e-3, Tier.COMPACT: 1.2e-2}
_RATIO_GOALS = {Tier.HIGH: 3.6, Tier.BALANCED: 4.4, Tier.COMPACT: 5.0}
_TOP1_GOALS = {Tier.HIGH: 0.975, Tier.COMPACT: 0.945}


class TierRoundTrip:
    """Encodes and decodes the KV of a prefix, chunk by chunk, as it would be stored; counts the bytes."""

    def __init__(self, tier: Tier, head_dim: int) -> None:
        self.encoded_bytes = 0
        self.value_bytes = 0
        self._tier, self._head_dim = tier, head_dim

    def __call__(self, kv: torch.Tensor) -> torch.Tensor:
        """Return the reconstruction of `[layers][2][tokens][channels]` bfloat16."""
        layers, _, tokens, channels = kv.shape
        shape = KvShape(layers, channels // self._head_dim, self._head_dim, KvDtype.BFLOAT16)
        encoder, decoder = Encoder(shape, self._tier), FrameDecoder(shape)
        parts = []
        for start in range(0, tokens, CHUNK_TOKENS):
            values = kv[:, :, start : start + CHUNK_TOKENS].contiguous()
            chunk = encoder.encode(memoryview(values.view(torch.uint8).numpy()).cast("B"), _KEY, start == 0)
            self.encoded_bytes += len(chunk)
            self.value_bytes += shape.values_bytes
            parts.append(_decoded(decoder, chunk, shape).view(torch.bfloat16).view_as(values))
        return torch.cat(parts, dim=2)


def _decoded(decoder: FrameDecoder, chunk: memoryview, shape: KvShape) -> torch.Tensor:
    header = parse_header(chunk, Expected(_KEY, shape), Limits(), len(chunk))
    layout = LandedLayout.of(header, LandingMode.VALUES)
    image = bytearray(layout.total_bytes)
    decode = decoder.begin(header, layout)
    for number, frame in enumerate(header.frames):
        place = layout.destination(frame)
        destination = None if place is None else memoryview(image)[place[0] : sum(place)]
        decode.decode(number, chunk[frame.offset : frame.offset + frame.encoded_bytes], destination)
    return torch.frombuffer(image, dtype=torch.uint8)[HEADER_BYTES:].clone()


def fp8(kv: torch.Tensor) -> torch.Tensor:
    """Return the KV after fp8 e4m3 without scales, as engines store it."""
    return kv.to(torch.float8_e4m3fn).to(kv.dtype)


def per_token(bits: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a symmetric quantiser with one scale a token and plane."""
    top = 2 ** (bits - 1) - 1

    def quantise(kv: torch.Tensor) -> torch.Tensor:
        values = kv.float()
        scale = values.abs().amax(-1, keepdim=True).clamp_min(1e-12) / top
        return ((values / scale).round() * scale).to(kv.dtype)

    return quantise


def measure(text: ForcedText, case: str, parameters: dict[str, object]) -> None:
    """Print the figures of every tier and rival on one text."""
    for rival, ratio, quantise in (
        ("fp8 e4m3", 2.0, fp8),
        ("per-token int8", 2.0, per_token(8)),
        ("per-token int4", 4.0, per_token(4)),
    ):
        quality = text.judge(quantise)
        _figures(f"{case}, {rival}", {"ratio": ratio, "kl": quality.kl, "top1": quality.top1}, {}, parameters)
    rival_kl = text.judge(fp8).kl
    for tier in Tier:
        round_trip = TierRoundTrip(tier, text.head_dim)
        quality = text.judge(round_trip)
        ratio = round_trip.value_bytes / round_trip.encoded_bytes
        goals = _goals(tier, rival_kl)
        figures = {"ratio": ratio, "kl": quality.kl, "top1": quality.top1, "perplexity": quality.perplexity}
        _figures(f"{case}, {tier.label}", figures, goals, parameters)


def _goals(tier: Tier, rival_kl: float) -> dict[str, Goal]:
    goals = {}
    if tier in _RATIO_GOALS:
        goals["ratio"] = Goal(Wanted.AT_LEAST, _RATIO_GOALS[tier])
        goals["kl"] = Goal(Wanted.AT_MOST, _KL_GOALS.get(tier, rival_kl))
    if tier in _TOP1_GOALS:
        goals["top1"] = Goal(Wanted.AT_LEAST, _TOP1_GOALS[tier])
    if tier is Tier.LOSSLESS:
        goals["kl"] = Goal(Wanted.AT_MOST, 0.0)
    return goals


def _figures(case: str, figures: dict[str, float], goals: dict[str, Goal], parameters: dict[str, object]) -> None:
    units = {"ratio": "x", "kl": "nats", "top1": "share", "perplexity": ""}
    for metric, value in figures.items():
        emit(Result(_BENCH, case, metric, [value], units[metric], goals.get(metric), "fp8 e4m3", parameters))


def main(arguments: Sequence[str]) -> int:
    """Run; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="texts of at least 2200 tokens (default: two real ones)")
    parser.add_argument("--texts", type=int, help="so many of the texts only")
    options = parser.parse_args(arguments)
    texts = {file.name: file.read_text() for file in options.files} or real_texts()
    model = os.environ["SHADOWSERVE_LAB_MODEL"]
    parameters: dict[str, object] = {"prefix_tokens": PREFIX_TOKENS, "forced_tokens": FORCED_TOKENS}
    for case, text in list(texts.items())[: options.texts]:
        measure(ForcedText(model, text), case, {**parameters, "model": Path(model).name})
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

"""What a tier saves, what it does to the model's predictions, and how fast it is; beside what others use.

Bits an element against KL divergence and top-1 agreement over 384 teacher-forced positions of each text, encode and
decode speed a core, and the payload against the entropy of its codes. `make bench-codec`.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from other_codecs import OTHERS, Coded
from quality import FORCED_TOKENS, PREFIX_TOKENS, ForcedText, Quality
from results import Goal, Report, Wanted, at_least, at_most

from shadowserve_dataplane.chunks import CHUNK_TOKENS, ChunkKey, KvDtype, KvShape
from shadowserve_dataplane.codec import reference
from shadowserve_dataplane.codec.decode import FrameDecoder
from shadowserve_dataplane.codec.encode import Encoder
from shadowserve_dataplane.codec.format import Expected, FrameKind, Limits, parse_header, planes_per_frame
from shadowserve_dataplane.codec.landed import HEADER_BYTES, LandedLayout
from shadowserve_dataplane.codec.tiers import LandingMode, Tier
from shadowserve_lab.texts import real_texts

_KEY = ChunkKey(bytes(32))
_KL_GOALS = {Tier.HIGH: 2e-3, Tier.COMPACT: 1.2e-2}
_RATIO_GOALS = {Tier.HIGH: 3.6, Tier.BALANCED: 4.4, Tier.COMPACT: 5.0}
_TOP1_GOALS = {Tier.HIGH: 0.975, Tier.COMPACT: 0.945}
_SPEED_ROUNDS = 5
GIGA = 1e9


class TierCodec:
    """Encodes and decodes the KV of a prefix chunk by chunk, as it would be stored."""

    def __init__(self, tier: Tier, head_dim: int) -> None:
        self._tier, self._head_dim = tier, head_dim
        self.payload_over_entropy = 0.0

    def __call__(self, kv: torch.Tensor) -> Coded:
        """Return the reconstruction of `[layers][2][tokens][channels]` bfloat16, and what it cost."""
        layers, _, tokens, channels = kv.shape
        shape = KvShape(layers, channels // self._head_dim, self._head_dim, KvDtype.BFLOAT16)
        encoder, decoder = Encoder(shape, self._tier), FrameDecoder(shape)
        parts, spent, encoded, sizes = [], [0.0, 0.0], 0, [0, 0.0]
        for start in range(0, tokens, CHUNK_TOKENS):
            values = kv[:, :, start : start + CHUNK_TOKENS].contiguous()
            canonical = memoryview(values.view(torch.uint8).numpy()).cast("B")
            began = time.process_time()
            chunk = encoder.encode(canonical, _KEY, start == 0)
            middle = time.process_time()
            restored = _decoded(decoder, chunk, shape)
            spent[0] += middle - began
            spent[1] += time.process_time() - middle
            encoded += len(chunk)
            parts.append(restored.view(torch.bfloat16).view_as(values))
            if self._tier is not Tier.LOSSLESS:
                sizes = [
                    have + more for have, more in zip(sizes, _payload_and_entropy(bytes(chunk), shape), strict=True)
                ]
        self.payload_over_entropy = sizes[0] / sizes[1] if sizes[1] else 0.0
        return Coded(torch.cat(parts, dim=2), 8 * encoded / kv.numel(), spent[0], spent[1])


def _decoded(decoder: FrameDecoder, chunk: memoryview, shape: KvShape) -> torch.Tensor:
    header = parse_header(chunk, Expected(_KEY, shape), Limits(), len(chunk))
    layout = LandedLayout.of(header, LandingMode.VALUES)
    image = bytearray(layout.total_bytes)
    decode = decoder.begin(header, layout)
    for number, frame in enumerate(header.frames):
        place = layout.destination(frame)
        destination = None if place is None else memoryview(image)[place[0] : sum(place)]
        decode.decode(number, chunk[frame.offset : frame.offset + frame.encoded_bytes], destination)
    return torch.frombuffer(image, dtype=torch.uint8)[HEADER_BYTES:]


def _payload_and_entropy(chunk: bytes, shape: KvShape) -> tuple[float, float]:
    """Return bytes of the CODES frames, and what the order-0 entropy of each frame's codes allows."""
    header = parse_header(memoryview(chunk), Expected(_KEY, shape), Limits(), len(chunk))
    codes, step = reference.codes(chunk, header), planes_per_frame(shape)
    payload = sum(frame.encoded_bytes for frame in header.frames if frame.kind is FrameKind.CODES)
    return payload, sum(_entropy_bytes(codes[first : first + step]) for first in range(0, shape.planes, step))


def _entropy_bytes(codes: np.ndarray) -> float:
    counts = np.bincount(codes.view(np.uint8).reshape(-1), minlength=256)
    shares = counts[counts > 0] / codes.size
    return float(-(shares * np.log2(shares)).sum()) * codes.size / 8


def measure(text: ForcedText, case: str, report: Report) -> None:
    """Report every rival and every tier on one text."""
    fp8_kl = 0.0
    for name, codec in OTHERS.items():
        try:
            coded = codec(text.kv)
        except LookupError as error:
            print(f"codec: {name} not measured: {error}", file=sys.stderr)
            continue
        quality = text.judge(lambda _, found=coded: found.kv)
        fp8_kl = quality.kl if name == "fp8 e4m3" else fp8_kl
        _figures(report, f"{case}, {name}", coded, quality, {})
    for tier in Tier:
        codec = TierCodec(tier, text.head_dim)
        coded = codec(text.kv)
        quality = text.judge(lambda _, found=coded: found.kv)
        _figures(report, f"{case}, {tier.label}", coded, quality, _goals(tier, fp8_kl))
        if tier is not Tier.LOSSLESS:
            share = [codec.payload_over_entropy]
            report.figure(f"{case}, {tier.label}", "payload / order-0 entropy", share, "ratio", at_most(1.03))


def _goals(tier: Tier, fp8_kl: float) -> dict[str, Goal]:
    goals = {}
    if tier in _RATIO_GOALS:
        goals["compression"] = Goal(Wanted.AT_LEAST, _RATIO_GOALS[tier])
        goals["KL"] = Goal(Wanted.AT_MOST, _KL_GOALS.get(tier, fp8_kl))
    if tier in _TOP1_GOALS:
        goals["top-1 agreement"] = Goal(Wanted.AT_LEAST, _TOP1_GOALS[tier])
    if tier is Tier.LOSSLESS:
        goals["KL"] = Goal(Wanted.AT_MOST, 0.0)
    return goals


def _figures(report: Report, case: str, coded: Coded, quality: Quality, goals: dict[str, Goal]) -> None:
    figures = {
        "compression": (16 / coded.bits, "x"),
        "bits an element": (coded.bits, "bit"),
        "KL": (quality.kl, "nats"),
        "top-1 agreement": (quality.top1, "share"),
        "perplexity": (quality.perplexity, ""),
    }
    for metric, (value, unit) in figures.items():
        report.figure(case, metric, [value], unit, goals.get(metric), rival="fp8 e4m3")


def speeds(text: ForcedText, report: Report) -> None:
    """Report encode and decode speed of all, turn by turn: gigabytes of bfloat16 a second of processor time."""
    codecs = {**OTHERS, **{tier.label: TierCodec(tier, text.head_dim) for tier in Tier}}
    gigabytes = text.kv.numel() * 2 / GIGA
    samples: dict[str, list[Coded]] = {name: [] for name in codecs}
    for round_number in range(_SPEED_ROUNDS + 1):
        for name, codec in codecs.items():
            if name.startswith("CacheGen") and round_number > 1:
                continue  # it takes seconds
            try:
                coded = codec(text.kv)
            except LookupError:
                continue
            if round_number:
                samples[name].append(coded)
    for name, taken in samples.items():
        if not taken:
            continue
        goal = at_least(1.0) if name == Tier.BALANCED.label else None
        encode, decode = ([gigabytes / getattr(c, way) for c in taken] for way in ("encode", "decode"))
        report.figure(f"speed, {name}", "encode", encode, "GB/s a core", goal, rival="CacheGen (LMCache)")
        report.figure(f"speed, {name}", "decode to values", decode, "GB/s a core")
    rivals = [coded.encode for name, taken in samples.items() if name.startswith("CacheGen") for coded in taken]
    if rivals:
        ratios = [rivals[0] / coded.encode for coded in samples[Tier.BALANCED.label]]
        report.figure(f"speed, {Tier.BALANCED.label}", "encode / CacheGen", ratios, "ratio", rival="CacheGen (LMCache)")


def main(arguments: Sequence[str]) -> int:
    """Run; 3 when the machine is too busy to tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="texts of at least 2200 tokens (default: two real ones)")
    parser.add_argument("--texts", type=int, help="so many of the texts only")
    options = parser.parse_args(arguments)
    texts = {file.name: file.read_text() for file in options.files} or real_texts()
    model = os.environ["SHADOWSERVE_LAB_MODEL"]
    parameters = {"prefix_tokens": PREFIX_TOKENS, "forced_tokens": FORCED_TOKENS, "model": Path(model).name}
    report = Report("codec", parameters)
    torch.set_num_threads(1)
    text = None
    for case, words in list(texts.items())[: options.texts]:
        text = ForcedText(model, words)
        measure(text, case, report)
    if text is not None:
        speeds(text, report)
    return report.exit_code


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

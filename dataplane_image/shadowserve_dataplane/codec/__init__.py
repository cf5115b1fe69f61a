"""The chunk format: tiers, byte format, quantisation, entropy coding."""

"""The fetch pipeline: receive, decompress, (dequantise,) place."""

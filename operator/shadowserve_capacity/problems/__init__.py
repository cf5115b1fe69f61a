"""Problems to try the sampler on: those of the paper, at any size, with synthetic data."""

"""The Jukebox VQ-VAE: one-dimensional convolutional codec with an EMA codebook."""

"""What the separation methods share: the Jukebox VQ-VAE, its priors, sampling and scores."""

"""The neural likelihood: what the mixture's waveform says about the sources' codes."""

"""The Jukebox prior: an autoregressive transformer over codes with sparse attention."""

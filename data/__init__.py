"""Making and preparing data sets."""

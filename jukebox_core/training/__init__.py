"""Training: the loop, several processes, loss curves, memory."""

"""Models and training, on either path."""

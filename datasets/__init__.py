"""Data at rest: sources of images, shard files, and what was committed. No TensorFlow here."""

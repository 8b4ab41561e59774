"""Augmentation: one policy, run offline into shards or online while training."""

"""Distributed training for weakly-supervised audio-visual video parsing."""

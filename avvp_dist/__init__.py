"""Distributed training for weakly supervised recognition of audio-visual events in time."""

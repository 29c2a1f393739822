"""Checkpoints: opened by reference, converted ones saved with a card and sent to the hub, positions extended."""
